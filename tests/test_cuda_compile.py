"""NVRTC without a GPU: cubins of the shipped kernels, errors in one line; and what a launch hands to the driver."""

import ctypes
import math
import random
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from costmodel import devices, tensors, workloads
from costmodel.measure import cuda_compile, cuda_launch, facts
from costmodel.measure.cuda_compile import CompileError, compile_cuda
from costmodel.measure.cuda_launch import Arguments, CudaModule, LaunchError
from costmodel.records import Config, Launch, UserError

NAMES = workloads.names("cuda")
SCALE = 'extern "C" __global__ void scale(float* x, int n) { if (threadIdx.x < n) x[threadIdx.x] *= FACTOR; }'


@pytest.fixture
def nvrtc():
    pytest.importorskip("cuda.bindings.nvrtc")
    try:
        return cuda_compile.nvrtc_version()
    except UserError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "sm_120"])
@pytest.mark.parametrize("name", NAMES)
def test_defaults_compile_and_do_not_spill(name, arch, nvrtc):
    import torch

    try:
        facts.tool("cuobjdump")
    except UserError as error:
        pytest.skip(str(error))
    workload = workloads.load(f"cuda/{name}")
    problem = next(iter(workload.problems.values()))
    cubin = compile_cuda(workload.kernel.source, workload.default, arch)
    with torch.device("meta"):
        inputs, outputs = tensors.empty(problem.inputs), tensors.empty(workload.outputs(problem))
        launches = workload.launch(problem, workload.default, inputs, outputs)
    for launch in launches:
        found = facts.of_cubin(
            cubin, arch, entry=launch.entry, threads=math.prod(launch.block), dynamic_shared_bytes=launch.shared_bytes,
            instructions=False,
        )  # fmt: skip
        assert dict(found)["stack_bytes"] == 0
        assert dict(found)["registers"] > 0
        assert facts.infeasible(found, devices.find("H200")) == ""


@pytest.mark.parametrize("name", NAMES)
def test_a_config_drawn_from_the_space_compiles(name, nvrtc):
    workload = workloads.load(f"cuda/{name}")
    problem = next(iter(workload.problems.values()))
    configs = list(workload.space.configs(problem, devices.find("H200")))
    assert compile_cuda(workload.kernel.source, random.Random(name).choice(configs), "sm_90")[:4] == b"\x7fELF"


def test_a_config_becomes_macros(nvrtc):
    assert compile_cuda(SCALE, Config.of(FACTOR=2.5), "sm_90") != compile_cuda(SCALE, Config.of(FACTOR=3), "sm_90")
    assert compile_cuda(SCALE, Config.of(FACTOR=True), "sm_90") == compile_cuda(SCALE, Config.of(FACTOR=1), "sm_90")


def test_a_text_that_includes_half_precision_compiles_where_there_are_headers(nvrtc):
    source = '#include <cuda_fp16.h>\nextern "C" __global__ void f(__half* x, float* y) { *y = __half2float(*x); }'
    if cuda_compile.include_path() is None:
        pytest.skip("no CUDA headers")
    assert compile_cuda(source, Config.of(), "sm_90")[:4] == b"\x7fELF"


@pytest.mark.parametrize(
    ("source", "arch", "said"),
    [
        (SCALE, "sm_90", 'kernel.cu(1): error: identifier "FACTOR" is undefined'),
        (
            'extern "C" __global__ void f(int* x) { __shared__ int t[20000]; t[*x] = 1; __syncthreads(); *x = t[7]; }',
            "sm_90",
            "too much shared data",
        ),
        ("", "gfx942", "invalid value for --gpu-architecture"),
        ("#include <no_such.h>", "sm_90", "no_such.h"),
    ],
)
def test_an_error_is_one_line(source, arch, said, nvrtc):
    with pytest.raises(CompileError) as caught:
        compile_cuda(source, Config.of(), arch)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_without_bindings_the_extra_is_named(monkeypatch):
    cuda_compile._nvrtc.cache_clear()
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(UserError, match=r"pip install 'costmodel\[cuda\]'"):
        compile_cuda(SCALE, Config.of(FACTOR=1), "sm_90")
    with pytest.raises(UserError, match=r"pip install 'costmodel\[cuda\]'"):
        cuda_launch._driver()


# ---- launching ----


def values_of(arguments: Arguments, *kinds):
    pointers = (ctypes.c_void_p * len(kinds)).from_address(arguments.address)
    return [kind.from_address(pointer).value for kind, pointer in zip(kinds, pointers, strict=True)]


def test_arguments_are_packed_as_cuda_declares_them():
    import torch

    x = torch.arange(6.0)[2:]
    given = (x, -7, 2.5, np.int64(1 << 40), np.float64(0.1), np.uint8(200), True)
    arguments = Arguments(given)
    assert arguments.sizes == [8, 4, 4, 8, 8, 1, 4]
    kinds = (ctypes.c_void_p, ctypes.c_int32, ctypes.c_float, ctypes.c_int64, ctypes.c_double, ctypes.c_uint8)
    assert values_of(arguments, *kinds, ctypes.c_int32) == [x.data_ptr(), -7, 2.5, 1 << 40, 0.1, 200, 1]
    assert Arguments(()).sizes == []


@pytest.mark.parametrize(
    ("argument", "said"), [(1 << 31, "numpy.int64"), (-(1 << 31) - 1, "32 bits"), ("x", "str"), (None, "NoneType")]
)
def test_an_argument_that_has_no_width_is_refused(argument, said):
    with pytest.raises(UserError, match=said):
        Arguments((1, argument))


class PlayedDriver:
    """Answers as the driver does for a module with the kernel scale(float*, int), and remembers what it is told."""

    CUresult = SimpleNamespace(CUDA_SUCCESS=0)
    CUfunction_attribute = SimpleNamespace(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES=8)
    CUstream = int
    INVALID = SimpleNamespace(name="CUDA_ERROR_INVALID_VALUE")

    def __init__(self):
        self.told = []

    def cuModuleLoadData(self, cubin):
        return 0, "module"

    def cuModuleGetFunction(self, module, name):
        return (0, "function") if name == b"scale" else (self.INVALID, None)

    def cuFuncGetParamInfo(self, function, place):
        return (0, 8 * place, (8, 4)[place]) if place < 2 else (self.INVALID, 0, 0)

    def cuFuncSetAttribute(self, function, attribute, value):
        self.told.append((attribute, value))
        return (0,) if value <= 232448 else (self.INVALID,)

    def cuLaunchKernel(self, function, *rest):
        self.told.append(rest[:8])
        return (0,)

    def cuGetErrorString(self, status):
        return 0, b"invalid argument"


@pytest.fixture
def played(monkeypatch):
    import torch

    driver = PlayedDriver()
    monkeypatch.setattr(cuda_launch, "_driver", lambda: driver)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: SimpleNamespace(cuda_stream=77))
    return driver


def test_a_launch_is_told_to_the_driver_and_large_shared_memory_asked_for_once(played):
    import torch

    module, args = CudaModule(b"cubin"), (torch.zeros(3), 3)
    for shared in (0, 49152, 60000, 50000):
        module.start(Launch("scale", (5, 6), args, block=(32,), shared_bytes=shared))
    starts = [(5, 6, 1, 32, 1, 1, shared, 77) for shared in (0, 49152, 60000, 50000)]
    assert played.told == [*starts[:2], (8, 60000), *starts[2:]]


def test_what_the_driver_refuses_is_one_line(played):
    module = CudaModule(b"cubin")
    with pytest.raises(LaunchError, match=r"^kernel other: CUDA_ERROR_INVALID_VALUE \(invalid argument\)$"):
        module.start(Launch("other", (1,), (), block=(32,)))
    with pytest.raises(LaunchError, match="240000 B of dynamic shared memory"):
        module.start(Launch("scale", (1,), (np.uint64(0), 1), block=(32,), shared_bytes=240000))


def test_arguments_that_are_not_the_kernels_are_refused_before_the_driver_reads_them(played):
    with pytest.raises(UserError, match=r"got arguments of \[8\] bytes for scale, expected \[8, 4\]"):
        CudaModule(b"cubin").start(Launch("scale", (1,), (np.uint64(0),), block=(32,)))
    assert played.told == []
