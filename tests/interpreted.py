"""A process in which Triton interprets its kernels on the CPU: requests as JSON lines in, largest errors out.

TRITON_INTERPRET is read when a kernel is decorated, so one process cannot both interpret and compile.
"""

import json
import os
import sys
import traceback

os.environ["TRITON_INTERPRET"] = "1"

import torch

from costmodel import tensors, workloads
from costmodel.records import Config


def errors(kernel: str, sizes: dict, config: dict) -> list[float]:
    """max |got - expected| over the largest |expected|, per output; inf where an integer or a NaN differs."""
    workload = workloads.load(kernel)
    problem = workload.make_problem(**sizes)
    inputs = workload.make_inputs(problem, 0)
    before = [x.clone() for x in inputs]
    outputs = tensors.empty(workload.outputs(problem))
    for output in outputs:
        output.fill_(float("nan") if output.is_floating_point() else 77)
    chosen = Config.of(**{**workload.default.as_dict(), **config})
    for start in workload.launch(problem, chosen, inputs, outputs):
        start.entry[start.grid](*start.args, **start.keywords)
    same = all(torch.equal(x.view(torch.uint8), y.view(torch.uint8)) for x, y in zip(inputs, before, strict=True))
    assert same, "the kernel wrote to its inputs"
    return [error(*pair) for pair in zip(outputs, workload.reference(problem, inputs), strict=True)]


def error(got: torch.Tensor, expected: torch.Tensor) -> float:
    assert got.shape == expected.shape, f"got {tuple(got.shape)}, expected {tuple(expected.shape)}"
    assert got.dtype == expected.dtype, f"got {got.dtype}, expected {expected.dtype}"
    if not got.is_floating_point():
        return 0.0 if torch.equal(got, expected) else float("inf")
    got, expected = got.double(), expected.double()
    worst = (got - expected).abs().max() / expected.abs().max().clamp_min(1e-30)
    return float("inf") if worst.isnan() else float(worst)


if __name__ == "__main__":
    for line in sys.stdin:
        try:
            answer = {"errors": errors(**json.loads(line))}
        except Exception:
            answer = {"failed": traceback.format_exc()}
        print(json.dumps(answer), flush=True)
