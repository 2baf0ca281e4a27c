"""A process in which Triton interprets its kernels on the CPU: requests as JSON lines in, largest errors out.

TRITON_INTERPRET is read when a kernel is decorated, so one process cannot both interpret and compile.
"""

import json
import os
import sys
import traceback

os.environ["TRITON_INTERPRET"] = "1"

import torch
from answers import error

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


if __name__ == "__main__":
    for line in sys.stdin:
        try:
            answer = {"errors": errors(**json.loads(line))}
        except Exception:
            answer = {"failed": traceback.format_exc()}
        print(json.dumps(answer), flush=True)
