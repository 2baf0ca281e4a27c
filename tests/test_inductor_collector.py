"""Kernels that torch.compile writes, taken apart without a GPU: found, loaded, started, compiled, interpreted."""

import pytest
import torch

from costmodel import devices, tensors, workloads
from costmodel.inductor_code import Number, Tensor, parse
from costmodel.records import UserError

pytest.importorskip("triton")

H200 = devices.find("H200")
collector = workloads.load_module(workloads.shipped("collectors") / "inductor_kernels.py")


def mlp():
    return torch.nn.Sequential(
        torch.nn.Linear(48, 96), torch.nn.GELU(), torch.nn.LayerNorm(96), torch.nn.Softmax(dim=-1)
    )


def plain(x, weight, bias, other):
    """Operators that Triton's interpreter knows: a matrix product with an epilogue, a sum of rows, a transpose."""
    hidden = torch.relu(x @ weight + bias)
    return hidden, (hidden * hidden).mean(-1), other.t() * 2 + 1


@pytest.fixture(scope="module")
def mlp_found(tmp_path_factory):
    return collector.workloads_of(mlp(), torch.zeros(20, 48), device=H200, folder=tmp_path_factory.mktemp("mlp"))


@pytest.fixture(scope="module")
def plain_found(tmp_path_factory):
    inputs = torch.zeros(20, 50), torch.zeros(50, 40), torch.zeros(40), torch.zeros(70, 33)
    folder = tmp_path_factory.mktemp("plain")
    return collector.workloads_of(plain, *inputs, device=H200, folder=folder, max_autotune=True)


def errors(interpret, workload, config):
    return interpret(str(workload.path), dict(workload.problems["compiled"].params), config)


def by_op(found):
    return {workload.problems["compiled"].op: workload for workload in found.workloads}


# ---- what is found ----


def test_an_mlp_is_one_fused_kernel_and_a_library_call(mlp_found):
    (workload,) = mlp_found.workloads
    problem = workload.problems["compiled"]
    assert problem.op == "persistent_reduction"
    assert dict(problem.params) == {"xnumel": 20, "r0_numel": 96}
    assert {"gelu", "softmax", "norm"} <= set(workload.kernel.name.split("_"))
    assert all(left.name.startswith("extern_kernels.") for left in mlp_found.left)
    assert len(mlp_found.left) == 1
    # x is read and overwritten in place by torch.compile, here it is read and another is written
    matrix, row = 4 * 20 * 96, 4 * 96
    assert problem.bytes == 2 * matrix + 3 * row
    assert problem.flops > 20 * 96


def test_matrix_products_become_templates_with_tunable_tiles(plain_found):
    assert plain_found.left == ()
    assert sorted(by_op(plain_found)) == ["matmul", "persistent_reduction", "pointwise"]
    matmul = by_op(plain_found)["matmul"]
    problem = matmul.problems["compiled"]
    assert dict(problem.params) == {"B": 1, "M": 20, "N": 40, "K": 50}
    assert problem.flops >= 2 * 20 * 40 * 50
    assert set(dict(matmul.space.params)) == {"BLOCK_M", "BLOCK_N", "BLOCK_K", "GROUP_M", "num_warps", "num_stages"}
    assert "BLOCK_M: tl.constexpr" in matmul.kernel.source.splitlines()[1]


def test_every_workload_is_complete(mlp_found, plain_found):
    for workload in (*mlp_found.workloads, *plain_found.workloads):
        problem = workload.problems["compiled"]
        configs = list(workload.space.configs(problem, H200))
        assert workload.default in configs
        assert len(configs) >= 10
        assert workload.kernel.language == "triton"
        assert workloads.load(workload.path).kernel == workload.kernel
        assert workloads.parse_problem(workload, None) == problem


def test_launches_can_be_made_without_values(mlp_found, plain_found):
    for workload in (*mlp_found.workloads, *plain_found.workloads):
        problem = workload.problems["compiled"]
        with torch.device("meta"):
            inputs, outputs = tensors.empty(problem.inputs), tensors.empty(workload.outputs(problem))
            (launch,) = workload.launch(problem, workload.default, inputs, outputs)
        assert all(isinstance(blocks, int) and blocks > 0 for blocks in launch.grid)


def test_sizes_are_part_of_the_text(mlp_found):
    with pytest.raises(UserError, match="compile the model anew"):
        workloads.parse_problem(mlp_found.workloads[0], "xnumel=21")


def test_this_process_sees_no_gpu_that_is_not_there(mlp_found):
    assert torch.cuda.is_available() == (torch.cuda.device_count() > 0)
    if not torch.cuda.is_available():
        assert torch.cuda.get_device_properties.__module__ == "torch.cuda"


# ---- offline, and interpreted ----


def test_defaults_compile_for_the_device(tmp_path):
    options = {"configs_per_kernel": 1, "jobs": 1}
    request = collector.CollectRequest(mlp(), (torch.zeros(20, 48),), H200, tmp_path, offline=True, options=options)
    (measurement,) = collector.collect(request)
    assert measurement.status == "compiled", measurement.error
    assert dict(measurement.counters)["infeasible"] == 0
    assert dict(measurement.counters)["registers"] > 0


def test_a_template_compiles_for_the_device(plain_found):
    facts = workloads.load_module(workloads.shipped("collectors") / "compile_facts.py")
    matmul = by_op(plain_found)["matmul"]
    request = facts.CollectRequest(workloads=(matmul,), device=H200, configs_per_kernel=1, jobs=1)
    (measurement,) = facts.collect(request)
    assert measurement.status == "compiled", measurement.error


@pytest.mark.parametrize(
    ("op", "config"),
    [
        ("pointwise", {}),
        ("pointwise", {"XBLOCK": 16, "YBLOCK": 64}),
        ("persistent_reduction", {"XBLOCK": 8}),
        ("matmul", {"BLOCK_K": 32}),  # 32 does not divide 50: the template's mask on k
        ("matmul", {"BLOCK_M": 16, "BLOCK_N": 64, "BLOCK_K": 64}),
    ],
)
def test_the_interpreted_kernel_gives_what_torch_gives(plain_found, interpret, op, config):
    workload = by_op(plain_found)[op]
    assert "No torch graph" not in workload.path.read_text()
    assert max(errors(interpret, workload, config)) <= workload.tolerance


def test_the_reference_is_the_piece_of_torch_behind_a_kernel(mlp_found):
    (workload,) = mlp_found.workloads
    problem = workload.problems["compiled"]
    inputs = workload.make_inputs(problem, 0)
    named = dict(zip(workload.reference.__globals__["READ"], inputs, strict=True))
    product = next(x for x in inputs if x.dim() == 2)
    bias, scale, shift = (x for name, x in named.items() if x.dim() == 1)
    hidden = torch.nn.functional.gelu(product + bias)
    expected = torch.softmax(torch.nn.functional.layer_norm(hidden, (96,), scale, shift), -1)
    (got,) = workload.reference(problem, inputs)
    torch.testing.assert_close(got, expected)


# ---- programs that were written elsewhere ----

META = (
    "'device': DeviceProperties(type='cuda', index=0, multi_processor_count=132, cc=90, major=9, "
    "regs_per_multiprocessor=65536, max_threads_per_multi_processor=2048, warp_size=32), 'constants': {}, "
    "'configs': [{}]"
)
PROGRAM = f"""
from torch._inductor.async_compile import AsyncCompile
async_compile = AsyncCompile()

triton_poi_fused_scale_0 = async_compile.triton('triton_poi_fused_scale_0', '''
import triton
import triton.language as tl
@triton_heuristics.pointwise(
    size_hints={{'x': 1024}},
    filename=__file__,
    triton_meta={{'signature': {{'in_out_ptr0': '*fp32', 'in_ptr0': '*i64', 'xnumel': 'i32', 'XBLOCK': 'constexpr'}},
                 {META}}},
    inductor_meta={{'grid_type': 'Grid1D', 'kernel_name': 'k', 'mutated_arg_names': ['in_out_ptr0'],
                   'autotune_hints': set(), 'max_autotune': False, 'max_autotune_pointwise': False}},
)
@triton.jit
def triton_poi_fused_scale_0(in_out_ptr0, in_ptr0, xnumel, XBLOCK : tl.constexpr):
    xnumel = 600
    xindex = tl.program_id(0) * XBLOCK + tl.arange(0, XBLOCK)[:]
    xmask = xindex < xnumel
    tmp0 = tl.load(in_out_ptr0 + (xindex), xmask)
    tmp1 = tl.load(in_ptr0 + (xindex), xmask)
    tl.device_assert(((0 <= tmp1) & (tmp1 < 77)) | ~(xmask), "index out of bounds: 0 <= tmp1 < 77")
    tmp2 = tmp0 + tmp1.to(tl.float32)
    tl.store(in_out_ptr0 + (xindex), tmp2, xmask)
    tmp3 = tl.load(in_out_ptr0 + (xindex), xmask)
''', device_str='cuda')

triton_poi_fused_add_1 = async_compile.triton('triton_poi_fused_add_1', '''
@triton_heuristics.pointwise(
    size_hints={{'x': 1024}},
    triton_meta={{'signature': {{'out_ptr0': '*fp32', 'xnumel': 'i32', 'XBLOCK': 'constexpr'}}, {META}}},
    inductor_meta={{'grid_type': 'Grid1D', 'ATOMIC': False}},
)
@triton.jit
def triton_poi_fused_add_1(out_ptr0, xnumel, XBLOCK : tl.constexpr):
    tl.store(out_ptr0 + tl.arange(0, XBLOCK), 0.0)
''', device_str='cuda')

def call(args):
    arg0_1, arg1_1 = args
    args.clear()
    assert_size_stride(arg0_1, (20, 30), (30, 1))
    assert_size_stride(arg1_1, (600, ), (1, ))
    with torch.cuda._DeviceGuard(0):
        buf0 = empty_strided_cuda((30, 20), (1, 30), torch.float32)
        extern_kernels.mm(arg0_1, arg0_1, out=buf0)
        buf1 = buf0; del buf0  # reuse
        buf2 = reinterpret_tensor(buf1, (600, ), (1, ), 0); del buf1  # reuse
        raw_stream0 = get_raw_stream(0)
        triton_poi_fused_scale_0.run(buf2, arg1_1, 600, stream=raw_stream0)
        buf3 = empty_strided_cuda((20, 40), (40, 1), torch.float32)
        triton_poi_fused_add_1.run(CALLED, stream=raw_stream0)
    return (buf2, buf3, )
"""


def test_a_program_is_read_from_its_text():
    kernels, left = parse(PROGRAM.replace("CALLED", "buf3, 800"))
    first, second = kernels
    assert [entry.name for entry in left] == ["extern_kernels.mm"]
    assert (first.name, first.kind, first.grid, first.tunable) == (
        "triton_poi_fused_scale",
        "pointwise",
        "Grid1D",
        ("XBLOCK",),
    )
    assert first.index_below == 77
    assert first.arguments == (
        Tensor("in_out_ptr0_before", "f32", (600,), (1,), False, "buf0"),
        Tensor("in_out_ptr0", "f32", (600,), (1,), True, "buf2"),
        Tensor("in_ptr0", "i64", (600,), (1,), False, "arg1_1"),
        Number("xnumel", 600),
    )
    body = first.source
    assert "tmp0 = tl.load(in_out_ptr0_before + xindex" in body
    assert "tl.store(in_out_ptr0 + xindex" in body
    assert "tmp3 = tl.load(in_out_ptr0 + xindex" in body  # what it has stored itself
    assert second.arguments == (Tensor("out_ptr0", "f32", (20, 40), (40, 1), True, "buf3"), Number("xnumel", 800))


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        (PROGRAM.replace("'ATOMIC': False", "'atomic_add_found': True").replace("CALLED", "buf3, 800"), "atomics"),
        (PROGRAM.replace("'ATOMIC': False", "'x': 0").replace("CALLED", "buf3, s0*40"), "no number"),
        (PROGRAM.replace("CALLED", "buf9, 800"), "stands nowhere"),
        (PROGRAM.replace("CALLED", "buf3, 400"), "does not state"),
        (PROGRAM.replace("CALLED", "reinterpret_tensor(buf3, (20, 20), (40, 1), 0), 400"), "a part of the buffer"),
    ],
)
def test_what_cannot_stand_alone_is_left_with_its_reason(program, reason):
    kernels, left = parse(program)
    assert [kernel.name for kernel in kernels] == ["triton_poi_fused_scale"]
    assert reason in {entry.name: entry.reason for entry in left}["triton_poi_fused_add_1"]


def test_a_program_of_another_machine_becomes_workloads(tmp_path, interpret):
    found = collector.from_code(PROGRAM.replace("CALLED", "buf3, 800"), device=H200, folder=tmp_path)
    scale = found.workloads[0]
    assert "No torch graph" in scale.path.read_text()
    _, index = scale.make_inputs(scale.problems["compiled"], 0)
    assert index.min() >= 0
    assert 50 < index.max() < 77
    other = next(value for value in dict(scale.space.params)["XBLOCK"] if value != scale.default["XBLOCK"])
    assert errors(interpret, scale, {"XBLOCK": other}) == [0.0]


# ---- mistakes ----


def test_mistakes_are_named(tmp_path):
    with pytest.raises(UserError, match="expected an NVIDIA sheet"):
        collector.workloads_of(mlp(), torch.zeros(2, 48), device=devices.find("MI300X"), folder=tmp_path)
    with pytest.raises(UserError, match="cannot be traced as one graph"):
        collector.workloads_of(lambda x: x if x.sum() > 0 else -x, torch.zeros(3), device=H200, folder=tmp_path)
    with pytest.raises(UserError, match=r"written by torch\.compile"):
        parse("print('hello')")
    with pytest.raises(UserError, match="no Python"):
        parse("def (")
    assert not list(tmp_path.iterdir())


def test_a_file_is_not_overwritten_with_another_kernel(tmp_path):
    program = PROGRAM.replace("CALLED", "buf3, 800")
    first = collector.from_code(program, device=H200, folder=tmp_path)
    assert [w.path for w in collector.from_code(program, device=H200, folder=tmp_path).workloads] == [
        w.path for w in first.workloads
    ]
    with pytest.raises(UserError, match="give a folder of its own"):
        collector.from_code(program.replace("tmp0 + tmp1", "tmp0 - tmp1"), device=H200, folder=tmp_path)
