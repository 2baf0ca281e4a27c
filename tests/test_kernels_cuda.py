"""Every shipped CUDA kernel: its space, its answers as emulated C++, and that the emulation sees what is wrong."""

import itertools
import random
import re
import shutil
import sys

import pytest
from answers import asked

from costmodel import devices, tensors, workloads
from costmodel.records import Config, Launch, UserError

H200 = devices.find("H200")
NAMES = workloads.names("cuda")

# Sizes of which a thread can be a fibre: odd ones that meet every tail, and ones that vectors divide. With the latter
# goes what to change of the default config, so that the other branches of the text run too.
TINY: dict[str, list[tuple[dict, dict]]] = {
    "matmul": [
        ({"M": 33, "N": 41, "K": 19}, {}),
        ({"M": 40, "N": 72, "K": 36}, {"VEC": 4, "SPREAD": 1, "STAGES": 2}),
    ],
    "matmul_tensor": [
        ({"M": 33, "N": 71, "K": 38}, {}),
        ({"M": 70, "N": 40, "K": 72}, {"BK": 16, "VEC": 8, "PAD": 0, "STAGES": 2}),
    ],
    "convolution": [
        ({"H": 21, "W": 45, "F": 5}, {}),
        ({"H": 40, "W": 70, "F": 3}, {"TILE_X": 2, "TILE_Y": 2, "IMAGE_SHARED": 1, "FILTER_SHARED": 1, "PAD": 1}),
    ],
    "stencil": [
        ({"D": 5, "H": 11, "W": 37, "STEPS": 2}, {}),
        ({"D": 7, "H": 13, "W": 35, "STEPS": 1}, {"ROWS": 2, "DEPTH": 4, "MARCH": 1, "SHARED": 1, "UNROLL": 2}),
    ],
    "reduction": [
        ({"n": 5003}, {}),
        ({"n": 4099}, {"BLOCKS": 32, "VEC": 4, "UNROLL": 4, "SHUFFLE": 1, "ATOMIC": 1}),
    ],
    "transpose": [
        ({"rows": 37, "columns": 51}, {}),
        ({"rows": 70, "columns": 13}, {"SHARED": 0, "READ_ROWS": 1, "STREAM": 1, "BY_COLUMNS": 1}),
    ],
    "softmax": [
        ({"rows": 5, "columns": 301}, {}),
        ({"rows": 7, "columns": 132}, {"TEAM": 64, "TEAMS": 2, "VEC": 4, "KEEP": 1, "ONLINE": 1, "FAST": 1}),
    ],
    "histogram": [
        ({"n": 3001, "bins": 37, "skew": 1}, {}),
        ({"n": 2003, "bins": 5, "skew": 0}, {"BLOCKS": 64, "VEC": 2, "PRIVATE": 1, "COPIES": 4, "MERGE": 1}),
    ],
    "nbody": [
        ({"n": 301}, {}),
        ({"n": 130}, {"THREADS": 64, "PER_THREAD": 2, "SHARED": 1, "SPLIT": 4, "RSQRT": 1}),
    ],
    "scan": [
        ({"n": 5003}, {}),
        ({"n": 4096}, {"THREADS": 64, "ROUNDS": 4, "EXCHANGE": 1, "SHUFFLE": 1}),
    ],
    "dedispersion": [
        ({"channels": 9, "trials": 7, "samples": 101, "longest": 23}, {}),
        ({"channels": 37, "trials": 11, "samples": 140, "longest": 60}, {"TILE_X": 2, "TILE_Y": 2, "DELAYS_SHARED": 1}),
    ],
}  # fmt: skip
CASES = [
    (name, case, drawn) for name, cases in TINY.items() for case in range(len(cases)) for drawn in ("set", "drawn")
]


@pytest.fixture(scope="module")
def emulate():
    """(kernel, sizes, config, changes of its text) -> the answer of a child of one process that emulates."""
    if sys.platform != "linux" or not shutil.which("g++"):
        pytest.skip("needs Linux and g++")
    with asked("emulated.py") as ask_whole:

        def ask(kernel: str, sizes: dict, config: dict, replace: dict | None = None) -> dict:
            return ask_whole({"kernel": kernel, "sizes": sizes, "config": config, "replace": replace or {}})

        yield ask


@pytest.mark.parametrize("name", NAMES)
def test_the_space_is_worth_tuning(name):
    workload = workloads.load(f"cuda/{name}")
    assert workload.kernel.language == "cuda"
    assert len(workload.problems) >= 4
    assert len({problem.params for problem in workload.problems.values()}) == len(workload.problems)
    assert [key for key, _ in workload.default.params] == [key for key, _ in workload.space.params]
    assert all(workload.default[key] in values for key, values in workload.space.params)
    for problem in workload.problems.values():
        assert len(list(itertools.islice(workload.space.configs(problem, H200), 60))) == 60
        assert workload.space.is_valid(workload.default, problem, H200)
        assert problem.flops > 0
        assert problem.bytes >= sum(_bytes(spec) for spec in (*problem.inputs, *workload.outputs(problem)))
        assert workload.make_problem(**dict(problem.params)) == problem


def _bytes(spec):
    size = tensors.dtype_of(spec.dtype).itemsize
    for length in spec.shape:
        size *= length
    return size


@pytest.mark.parametrize("name", NAMES)
def test_the_text_uses_every_parameter_and_no_header(name):
    source = workloads.load(f"cuda/{name}").kernel.source
    assert "#include" not in source
    words = set(re.findall(r"\w+", re.sub(r"//.*", "", source)))
    assert {parameter for parameter, _ in workloads.load(f"cuda/{name}").space.params} <= words


@pytest.mark.parametrize("name", NAMES)
def test_sizes_that_a_user_gives_must_be_possible(name):
    workload = workloads.load(f"cuda/{name}")
    sizes = dict(next(iter(workload.problems.values())).params)
    first = next(iter(sizes))
    with pytest.raises(UserError, match="expected"):
        workload.make_problem(**{**sizes, first: 0})


@pytest.mark.parametrize("name", NAMES)
def test_launches_can_be_made_without_values_and_are_within_the_limits(name):
    import torch

    workload = workloads.load(f"cuda/{name}")
    for problem in workload.problems.values():
        with torch.device("meta"):
            inputs, outputs = tensors.empty(problem.inputs), tensors.empty(workload.outputs(problem))
            for config in itertools.islice(workload.space.configs(problem, H200), 0, None, 97):
                for launch in workload.launch(problem, config, inputs, outputs):
                    assert isinstance(launch, Launch)
                    threads = 1
                    for size in launch.block:
                        threads *= size
                    assert 1 <= threads <= 1024
                    assert all(1 <= size < 1 << 31 for size in launch.grid)
                    assert all(size <= 65535 for size in launch.grid[1:])
                    assert 0 <= launch.shared_bytes <= 227 << 10
                    assert re.search(rf"__global__[^;{{]*\b{launch.entry}\(", workload.kernel.source)


def test_every_kernel_is_emulated():
    assert set(TINY) == set(NAMES)


@pytest.mark.parametrize(("name", "case", "drawn"), CASES)
def test_the_emulated_kernel_agrees_with_its_reference(name, case, drawn, emulate):
    workload = workloads.load(f"cuda/{name}")
    sizes, changed = TINY[name][case]
    problem = workload.make_problem(**sizes)
    config = Config.of(**{**workload.default.as_dict(), **changed})
    assert workload.space.is_valid(config, problem, H200)
    if drawn == "drawn":
        config = random.Random(f"{name} {case}").choice(list(workload.space.configs(problem, H200)))
    answer = emulate(f"cuda/{name}", sizes, config.as_dict())
    assert "failed" not in answer, answer["failed"]
    assert max(answer["errors"]) <= workload.tolerance, str(config)


# What is done to a text, and what is then said; "" stands for a wrong answer.
WRONG = {
    "no barrier behind the tiles": (
        "matmul", 1, {"        keep(stage);\n        __syncthreads();": "        keep(stage);"}, ""),
    "no barrier before they are overwritten": (
        "matmul", 0, {"            __syncthreads();\n            fetch(k0);": "            fetch(k0);"}, ""),
    "a thread returns before a barrier": (
        "nbody", 1, {"float4 mine[PER_THREAD];": "float4 mine[PER_THREAD]; if (threadIdx.x == 63) return;"},
        "returned before a barrier"),
    "threads at different barriers": (
        "transpose", 0, {"    __syncthreads();": "    if (threadIdx.x < 7)\n        __syncthreads();\n    else\n"
                         "        __syncthreads();"}, "different barriers"),
    "a lane leaves out a shuffle": (
        "reduction", 1, {"    for (int offset = 16;": "    if (threadIdx.x != 5) for (int offset = 16;"},
        "a warp operation waits"),
    "a read beyond the end of an array": (
        "transpose", 0, {"row0 + row < rows && column0": "column0"}, "signal"),
    "a write beside dynamic shared memory": (
        "softmax", 1, {"kept + threadIdx.y * columns": "kept + (threadIdx.y + 1) * columns"}, "signal"),
    "an index beyond static shared memory": (
        "transpose", 0, {"kept[TILE_Y][TILE_X + PAD];": "kept[TILE_Y][TILE_X + PAD - 1];"}, "out of bounds"),
    "a vector at an odd address": (
        "reduction", 1, {"(x);\n    float sums": "(x + 1);\n    float sums"}, "misaligned"),
    "shared memory taken for zero": (
        "histogram", 1, {"copies[i] = 0;": "copies[i] += 0;"}, ""),
    "a parameter too many": (
        "scan", 0, {"sums, int count)": "sums, int count, int more)"}, "2 arguments"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_the_emulation_sees_what_is_wrong(what, emulate):
    name, case, changes, said = WRONG[what]
    workload = workloads.load(f"cuda/{name}")
    sizes, changed = TINY[name][case]
    answer = emulate(f"cuda/{name}", sizes, changed, changes)
    if said:
        assert said in answer.get("failed", str(answer))
    else:
        assert max(answer["errors"]) > workload.tolerance
