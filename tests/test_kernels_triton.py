"""Every shipped Triton kernel: its space, its answers under Triton's interpreter, and that it compiles."""

import pytest

from costmodel import devices, workloads
from costmodel.records import Launch

pytest.importorskip("triton")

H200 = devices.find("H200")
NAMES = workloads.names("triton")

# Sizes and configs small enough to interpret, odd enough to meet every mask. One or two cases a kernel.
TINY: dict[str, list[tuple[dict, dict]]] = {
    "softmax": [
        ({"rows": 7, "columns": 13, "dtype": "f16"}, {"ROWS": 2, "STEPS": 2}),
        ({"rows": 3, "columns": 130, "dtype": "f32"}, {"ROWS": 1, "STEPS": 1}),
    ],
}
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


def test_every_kernel_is_interpreted():
    assert set(TINY) == set(NAMES)


@pytest.mark.parametrize(("name", "case"), CASES, ids=[f"{name}-{i}" for name, i in CASES])
def test_the_interpreted_kernel_agrees_with_its_reference(name, case, interpret):
    sizes, config = TINY[name][case]
    tolerance = workloads.load(f"triton/{name}").tolerance
    assert max(interpret(f"triton/{name}", sizes, config)) <= tolerance
