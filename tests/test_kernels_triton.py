"""Every shipped Triton kernel: its space, its answers under Triton's interpreter, and that it compiles."""

import pytest

from costmodel import devices, workloads
from costmodel.measure.gpu_compiling import GpuCompilePool
from costmodel.records import Launch

pytest.importorskip("triton")

H200 = devices.find("H200")
NAMES = workloads.names("triton")

# Sizes and configs small enough to interpret, odd enough to meet every mask. One or two cases a kernel.
TINY_ROWS: dict[str, list[tuple[dict, dict]]] = {
    "softmax": [
        ({"rows": 7, "columns": 13, "dtype": "f16"}, {"BLOCK_M": 2, "BLOCK_N": 16, "STEPS": 2}),
        ({"rows": 3, "columns": 130, "dtype": "f32"}, {"BLOCK_M": 2, "BLOCK_N": 32}),
    ],
    "layer_norm": [
        ({"rows": 7, "columns": 13, "dtype": "f16"}, {"BLOCK_M": 4, "BLOCK_N": 16}),
        ({"rows": 3, "columns": 70, "dtype": "f32"}, {"BLOCK_M": 2, "BLOCK_N": 32}),
    ],
    "layer_norm_backward": [
        ({"rows": 13, "columns": 19, "dtype": "f16"}, {"BLOCK_M": 2, "PROGRAMS": 3, "REDUCE_N": 16}),
        ({"rows": 5, "columns": 33, "dtype": "f32"}, {"BLOCK_M": 1, "PROGRAMS": 4, "REDUCE_N": 64}),
    ],
    "rms_norm": [
        ({"rows": 7, "columns": 13, "dtype": "f16"}, {"BLOCK_M": 2, "STEPS": 2}),
        ({"rows": 3, "columns": 70, "dtype": "f32"}, {"BLOCK_M": 1, "STEPS": 1}),
    ],
    "rms_norm_backward": [
        ({"rows": 13, "columns": 19, "dtype": "f16"}, {"BLOCK_M": 4, "BLOCK_N": 16, "REDUCE_N": 16}),
        ({"rows": 5, "columns": 33, "dtype": "f32"}, {"BLOCK_M": 2, "BLOCK_N": 64, "REDUCE_N": 64}),
    ],
    "cross_entropy": [
        ({"rows": 20, "vocabulary": 37, "dtype": "f16"}, {"BLOCK_N": 16, "BY_LANE": 0}),
        ({"rows": 20, "vocabulary": 70, "dtype": "f32"}, {"BLOCK_N": 32, "BY_LANE": 1}),
    ],
    "rotary": [
        (
            {"tokens": 7, "positions": 5, "q_heads": 6, "k_heads": 3, "dim": 12, "dtype": "f16"},
            {"BLOCK_M": 2, "BLOCK_H": 4},
        ),
        (
            {"tokens": 3, "positions": 4, "q_heads": 2, "k_heads": 1, "dim": 8, "dtype": "f32"},
            {"BLOCK_M": 4, "BLOCK_H": 1},
        ),
    ],
    "swiglu": [
        ({"rows": 7, "columns": 37, "dtype": "f16"}, {"BLOCK_M": 2, "BLOCK_N": 16, "STEPS": 2}),
        ({"rows": 3, "columns": 16, "dtype": "f32"}, {"BLOCK_M": 4, "BLOCK_N": 16, "STEPS": 1}),
    ],
    "dropout": [
        ({"size": 301, "p": 0.25, "dtype": "f16"}, {"BLOCK": 32, "STEPS": 2}),
        ({"size": 1000, "p": 0.9, "dtype": "f32"}, {"BLOCK": 256, "STEPS": 1}),
    ],
    "reduce_sum": [
        ({"rows": 29, "columns": 37, "dtype": "f16"}, {"BLOCK_M": 4, "BLOCK_N": 16, "SPLIT": 4}),
        ({"rows": 13, "columns": 5, "dtype": "f32"}, {"BLOCK_M": 4, "BLOCK_N": 16, "SPLIT": 1}),
    ],
    "scan": [
        ({"rows": 3, "columns": 101, "dtype": "f32"}, {"BLOCK_M": 2, "BLOCK_N": 8, "SPLIT": 4}),
        ({"rows": 1, "columns": 45, "dtype": "i32"}, {"BLOCK_M": 1, "BLOCK_N": 16, "SPLIT": 1}),
    ],
    "top_k": [
        ({"rows": 3, "columns": 61, "k": 5, "dtype": "f16"}, {"BLOCK_M": 2, "BLOCK_N": 16, "SPLIT": 2, "SKIP": 1}),
        ({"rows": 2, "columns": 37, "k": 3, "dtype": "f32"}, {"BLOCK_M": 1, "BLOCK_N": 64}),
    ],
    "gather": [
        ({"rows": 11, "width": 37, "count": 13, "dtype": "f16"}, {"BLOCK_M": 4, "BLOCK_N": 16, "STEPS": 2}),
        ({"rows": 5, "width": 6, "count": 3, "dtype": "f32"}, {"BLOCK_M": 2, "BLOCK_N": 8, "STEPS": 1}),
    ],
    "scatter_add": [
        ({"rows": 40, "width": 19, "segments": 7, "dtype": "f16"}, {"BLOCK_M": 4, "BLOCK_N": 16}),
        ({"rows": 30, "width": 5, "segments": 9, "skewed": 1, "dtype": "f32"}, {"BLOCK_M": 1, "BLOCK_N": 8}),
    ],
    "embedding_backward": [
        ({"rows": 7, "width": 19, "tokens": 30, "dtype": "f16"}, {"ROWS": 4, "BLOCK_M": 4, "BLOCK_N": 16}),
        ({"rows": 20, "width": 5, "tokens": 9, "skewed": 1, "dtype": "f32"}, {"ROWS": 1, "BLOCK_M": 1, "BLOCK_N": 8}),
    ],
    "quantize": [
        ({"rows": 7, "columns": 13, "dtype": "f16"}, {"BLOCK_M": 4, "BLOCK_N": 16}),
        ({"rows": 3, "columns": 333, "dtype": "f32"}, {"BLOCK_M": 2, "BLOCK_N": 64}),
    ],
    "dequantize": [
        ({"rows": 3, "columns": 48, "group": 16}, {"BLOCK_M": 4, "STEPS": 2}),
        ({"rows": 5, "columns": 32, "group": 32}, {"BLOCK_M": 2, "STEPS": 1}),
    ],
    "transpose": [
        ({"rows": 37, "columns": 21, "dtype": "f16"}, {"BLOCK_M": 8, "BLOCK_N": 16, "GROUP_M": 4}),
        ({"rows": 5, "columns": 70, "dtype": "f32"}, {"BLOCK_M": 8, "BLOCK_N": 8, "GROUP_M": 1}),
    ],
    "histogram": [
        ({"size": 301, "bins": 20, "skewed": 1, "dtype": "u8"}, {"BLOCK": 32, "PROGRAMS": 3}),
        ({"size": 100, "bins": 70, "dtype": "i32"}, {"BLOCK": 64, "PROGRAMS": 1}),
    ],
    "spmv": [
        (
            {"rows": 21, "columns": 30, "nonzeros": 200, "pattern": "powerlaw", "dtype": "f16"},
            {"BLOCK_M": 4, "BLOCK_N": 4, "STEPS": 2},
        ),
        (
            {"rows": 9, "columns": 9, "nonzeros": 40, "pattern": "banded", "dtype": "f32"},
            {"BLOCK_M": 1, "BLOCK_N": 16, "STEPS": 1},
        ),
    ],
}
TINY_MATRIX: dict[str, list[tuple[dict, dict]]] = {
    "matmul": [
        ({"M": 37, "N": 45, "K": 70, "layout": "nn", "dtype": "f16"}, {"BLOCK_M": 16, "BLOCK_N": 32, "BLOCK_K": 32}),
        (
            {"M": 50, "N": 33, "K": 64, "layout": "nt", "dtype": "f16"},
            {"BLOCK_M": 16, "BLOCK_N": 32, "BLOCK_K": 32, "GROUP_M": 4},
        ),
    ],
    "matmul_split_k": [
        (
            {"M": 19, "N": 40, "K": 330, "dtype": "f16"},
            {"BLOCK_M": 16, "BLOCK_N": 32, "BLOCK_K": 32, "SPLIT_K": 4, "SUM_BLOCK": 512},
        ),
        # The last parts are empty.
        (
            {"M": 5, "N": 7, "K": 160, "dtype": "f16"},
            {"BLOCK_M": 16, "BLOCK_N": 32, "BLOCK_K": 32, "SPLIT_K": 4},
        ),
    ],
    "matmul_batched": [
        (
            {"B": 3, "M": 20, "N": 35, "K": 24, "layout": "nn", "dtype": "f16"},
            {"BLOCK_M": 16, "BLOCK_N": 32, "BLOCK_K": 16},
        ),
        (
            {"B": 2, "M": 49, "N": 49, "K": 32, "layout": "nt", "dtype": "f16"},
            {"BLOCK_M": 32, "BLOCK_N": 32, "BLOCK_K": 16},
        ),
    ],
    "matmul_fp8": [
        ({"M": 33, "N": 50, "K": 96, "output": "f16"}, {"BLOCK_M": 16, "BLOCK_N": 32, "BLOCK_K": 64}),
        ({"M": 16, "N": 70, "K": 128, "output": "bf16"}, {"BLOCK_M": 16, "BLOCK_N": 64, "BLOCK_K": 64}),
    ],
    "matmul_grouped": [
        (
            {"rows": 75, "experts": 5, "N": 40, "K": 50, "skew": 1.0, "dtype": "f16"},
            {"BLOCK_M": 16, "BLOCK_N": 32, "BLOCK_K": 32},
        ),
        # More experts than rows: some have none.
        (
            {"rows": 6, "experts": 9, "N": 33, "K": 64, "skew": 0.0, "dtype": "f16"},
            {"BLOCK_M": 16, "BLOCK_N": 32, "BLOCK_K": 32, "GROUP_M": 1},
        ),
    ],
    "matmul_int4": [
        (
            {"M": 19, "N": 40, "K": 128, "group": 64, "dtype": "f16"},
            {"BLOCK_M": 16, "BLOCK_N": 32, "BLOCK_K": 32},
        ),
        (
            {"M": 3, "N": 33, "K": 96, "group": 32, "dtype": "f16"},
            {"BLOCK_M": 16, "BLOCK_N": 16, "BLOCK_K": 32, "GROUP_M": 1},
        ),
    ],
    "fused_mlp": [
        (
            {"tokens": 21, "width": 40, "hidden": 70, "activation": "swiglu", "dtype": "f16"},
            {"BLOCK_M": 16, "BLOCK_N": 32, "DOWN_N": 32, "BLOCK_K": 32},
        ),
        (
            {"tokens": 5, "width": 32, "hidden": 96, "activation": "gelu", "dtype": "f16"},
            {"BLOCK_M": 16, "BLOCK_N": 32, "DOWN_N": 64, "BLOCK_K": 32, "GROUP_M": 1},
        ),
    ],
    "attention": [
        # Fewer causal queries than keys, and heads that share keys.
        (
            {
                "batch": 1, "heads": 4, "kv_heads": 2, "queries": 37, "keys": 50, "D": 32, "causal": True,
                "dtype": "f16",
            },
            {"BLOCK_M": 32, "BLOCK_N": 16},
        ),
        (
            {
                "batch": 2, "heads": 2, "kv_heads": 2, "queries": 20, "keys": 77, "D": 16, "causal": False,
                "dtype": "f16",
            },
            {"BLOCK_M": 16, "BLOCK_N": 32},
        ),
    ],
    "attention_backward": [
        # Fewer causal queries than keys, and heads that share keys.
        (
            {
                "batch": 1, "heads": 4, "kv_heads": 2, "queries": 37, "keys": 50, "D": 32, "causal": True,
                "dtype": "f16",
            },
            {"KV_BLOCK_M": 16, "KV_BLOCK_N": 32, "Q_BLOCK_M": 32, "Q_BLOCK_N": 16},
        ),
        (
            {
                "batch": 2, "heads": 2, "kv_heads": 2, "queries": 20, "keys": 45, "D": 16, "causal": False,
                "dtype": "f16",
            },
            {"KV_BLOCK_M": 32, "KV_BLOCK_N": 32, "Q_BLOCK_M": 32, "Q_BLOCK_N": 32},
        ),
    ],
    "attention_decode": [
        ({"batch": 2, "heads": 6, "kv_heads": 2, "keys": 90, "D": 32, "dtype": "f16"}, {"BLOCK_N": 16, "SPLITS": 4}),
        # The last part is empty.
        ({"batch": 1, "heads": 3, "kv_heads": 3, "keys": 70, "D": 16, "dtype": "f16"}, {"BLOCK_N": 16, "SPLITS": 4}),
    ],
    "conv2d": [
        (
            {
                "images": 2, "height": 7, "width": 9, "channels": 16, "filters": 20, "R": 3, "S": 3, "stride": 1,
                "pad": 1, "dtype": "f16",
            },
            {"BLOCK_M": 32, "BLOCK_N": 32, "BLOCK_K": 16},
        ),
        # A step takes in several taps.
        (
            {
                "images": 1, "height": 11, "width": 8, "channels": 3, "filters": 33, "R": 5, "S": 4, "stride": 2,
                "pad": 2, "dtype": "f16",
            },
            {"BLOCK_M": 32, "BLOCK_N": 32, "BLOCK_K": 32},
        ),
    ],
    "matmul_sparse": [
        (
            {"M": 96, "N": 50, "K": 128, "size": 32, "density": 0.4, "dtype": "f16"},
            {"BLOCK_N": 32, "STEPS": 2},
        ),
        # Rows of blocks without a block.
        (
            {"M": 80, "N": 17, "K": 64, "size": 16, "density": 0.2, "dtype": "f16"},
            {"BLOCK_N": 16, "STEPS": 1, "GROUP_M": 1},
        ),
    ],
}  # fmt: skip
TINY = {**TINY_ROWS, **TINY_MATRIX}
CASES = [(name, i) for name, cases in TINY.items() for i in range(len(cases))]


@pytest.mark.parametrize("name", NAMES)
def test_the_space_is_worth_tuning(name):
    workload = workloads.load(f"triton/{name}")
    assert len(workload.problems) >= 4
    for problem in workload.problems.values():
        configs = list(workload.space.configs(problem, H200))
        assert len(configs) >= 60
        assert workload.default in configs
        assert problem.flops > 0
        assert problem.bytes > 0


@pytest.mark.parametrize("name", NAMES)
def test_launches_can_be_made_without_values(name):
    """An offline compile has shapes alone."""
    import torch

    from costmodel import tensors

    workload = workloads.load(f"triton/{name}")
    for problem in workload.problems.values():
        with torch.device("meta"):
            inputs, outputs = tensors.empty(problem.inputs), tensors.empty(workload.outputs(problem))
            launches = workload.launch(problem, workload.default, inputs, outputs)
        assert launches
        assert all(isinstance(launch, Launch) for launch in launches)


def test_every_default_compiles_without_spills_and_fits():
    """One problem each, for sm_90; benchmarks/offline_compile.py takes all of them."""
    chosen = [workloads.load(f"triton/{name}") for name in NAMES]
    wanted = [(w.path, next(iter(w.problems.values())), w.default, H200.arch) for w in chosen]
    with GpuCompilePool(instructions=False) as pool:
        builds = pool.compile(wanted)
    for name, build in zip(NAMES, builds, strict=True):
        assert build.status == "compiled", f"{name}: {build.error}"
        assert build.infeasible(H200) == "", name
        assert dict(build.facts)["stack_bytes"] == 0, name


def test_every_kernel_is_interpreted():
    assert set(TINY) == set(NAMES)


@pytest.mark.parametrize(("name", "case"), CASES, ids=[f"{name}-{i}" for name, i in CASES])
def test_the_interpreted_kernel_agrees_with_its_reference(name, case, interpret):
    sizes, config = TINY[name][case]
    tolerance = workloads.load(f"triton/{name}").tolerance
    assert max(interpret(f"triton/{name}", sizes, config)) <= tolerance
