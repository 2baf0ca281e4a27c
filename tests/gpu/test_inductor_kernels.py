"""Kernels of torch.compile on a GPU: what is written without one is what torch.compile writes here, and it is right."""

import pytest

from costmodel import devices, tensors, workloads
from costmodel.inductor_code import parse

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available() or torch.version.hip is not None, reason="needs a CUDA device"),
]


def block():
    return torch.nn.Sequential(
        torch.nn.Linear(256, 512), torch.nn.GELU(), torch.nn.LayerNorm(512), torch.nn.Softmax(dim=-1)
    ).requires_grad_(False)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    collector = workloads.load_module(workloads.shipped("collectors") / "inductor_kernels.py")
    folder = tmp_path_factory.mktemp("block")
    return collector.workloads_of(
        block(), torch.zeros(64, 256), device=devices.detect("cuda"), folder=folder, max_autotune=True
    )


def texts(program):
    """The kernels' texts without their names, which tell how the graph was traced."""
    return {kernel.source.replace(kernel.name, "kernel") for kernel in parse(program)[0]}


def test_the_program_is_the_one_written_here():
    from torch._inductor.utils import run_and_get_code

    from costmodel.inductor_writer import write

    with torch.no_grad():
        _, programs = run_and_get_code(torch.compile(block().cuda()), torch.zeros(64, 256, device="cuda"))
    pretended = write(block(), (torch.zeros(64, 256),), device=devices.detect("cuda")).code
    here = [texts(program) for program in programs]
    assert texts(pretended) == set().union(*here)


def test_every_kernel_gives_what_torch_gives(found):
    assert len(found.workloads) == 2
    for workload in found.workloads:
        problem = workload.problems["compiled"]
        with torch.device("cuda"):
            inputs = workload.make_inputs(problem, 0)
            outputs = tensors.empty(workload.outputs(problem))
            for start in workload.launch(problem, workload.default, inputs, outputs):
                start.entry[start.grid](*start.args, **start.keywords)
            expected = workload.reference(problem, inputs)
        for got, wanted in zip(outputs, expected, strict=True):
            assert (got - wanted).abs().max() <= workload.tolerance * wanted.abs().max()
