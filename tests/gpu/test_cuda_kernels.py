"""Every CUDA kernel on a GPU, compiled by NVRTC and started through the driver, against its reference."""

import random

import pytest

from costmodel import devices, tensors, workloads
from costmodel.records import Config

torch = pytest.importorskip("torch")

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available() or torch.version.hip is not None, reason="needs a CUDA device"),
]

NAMES = workloads.names("cuda")
# Some thousand to a million elements, and sizes that no block divides.
SIZES: dict[str, dict] = {
    "matmul": {"M": 333, "N": 514, "K": 770},
    "matmul_tensor": {"M": 333, "N": 514, "K": 776},
    "convolution": {"H": 333, "W": 517, "F": 7},
    "stencil": {"D": 37, "H": 93, "W": 131, "STEPS": 3},
    "reduction": {"n": 1_000_003},
    "transpose": {"rows": 1003, "columns": 777},
    "softmax": {"rows": 77, "columns": 3004},
    "histogram": {"n": 1_000_003, "bins": 301, "skew": 1},
    "nbody": {"n": 3001},
    "scan": {"n": 1_000_003},
    "dedispersion": {"channels": 101, "trials": 51, "samples": 2003, "longest": 300},
}


def test_every_kernel_has_sizes():
    assert set(SIZES) == set(NAMES)


def worst_error(got, expected) -> float:
    """Largest error as a share of the largest expected magnitude; integers must be equal."""
    assert (got.shape, got.dtype) == (expected.shape, expected.dtype)
    if not got.is_floating_point():
        return 0.0 if torch.equal(got, expected) else float("inf")
    got, expected = got.double(), expected.double()
    worst = float((got - expected).abs().max() / expected.abs().max())
    return float("inf") if worst != worst else worst


def run(workload, problem, config: Config, inputs, expected) -> float:
    from costmodel.measure.cuda_compile import compile_cuda
    from costmodel.measure.cuda_launch import CudaModule

    capability = torch.cuda.get_device_capability()
    module = CudaModule(compile_cuda(workload.kernel.source, config, f"sm_{capability[0]}{capability[1]}"))
    outputs = tensors.empty(workload.outputs(problem))
    for output in outputs:
        output.fill_(float("nan") if output.is_floating_point() else 77)
    for launch in workload.launch(problem, config, inputs, outputs):
        module.start(launch)
    torch.cuda.synchronize()
    module.close()
    return max(worst_error(got, right) for got, right in zip(outputs, expected, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_the_default_and_drawn_configs_agree_with_the_reference(name):
    device = devices.detect("cuda")
    workload = workloads.load(f"cuda/{name}")
    problem = workload.make_problem(**SIZES[name])
    configs = list(workload.space.configs(problem, device))
    with torch.device("cuda"):
        inputs = workload.make_inputs(problem, 0)
        before = [x.clone() for x in inputs]
        expected = workload.reference(problem, inputs)
        for config in [workload.default, *random.Random(name).sample(configs, 8)]:
            assert run(workload, problem, config, inputs, expected) <= workload.tolerance, str(config)
    assert all(torch.equal(x.view(torch.uint8), copy.view(torch.uint8)) for x, copy in zip(inputs, before, strict=True))
