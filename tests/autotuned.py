"""Autotuned kernels under Triton's interpreter, pruned by the model: prints what happened as one JSON document.

python autotuned.py STORE
"""

import json
import os
import sys
import time
import warnings
from pathlib import Path
from unittest import mock

os.environ["TRITON_INTERPRET"] = "1"

import torch
import triton
import triton.language as tl
from examples import example

from costmodel import devices, workloads
from costmodel.integrations import triton as integration

CONFIGS = [
    triton.Config({"BLOCK": block}, num_warps=warps, num_stages=stages)
    for block in (64, 128, 256, 512)
    for warps in (1, 2, 4, 8)
    for stages in (1, 2)
]
benchmarked = []


def bench(call, quantiles):
    """The fewer elements a program takes, the quicker it claims to be; one config fails."""
    call()
    benchmarked.append(1)
    return [float(len(benchmarked))] * 3


@triton.jit
def twice(x):
    return x * 2.0


def autotuned(**options):
    @triton.autotune(configs=CONFIGS, key=["n"], do_bench=bench, **options)
    @triton.jit
    def double(x_ptr, y_ptr, n, BLOCK: tl.constexpr):
        offset = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        x = tl.load(x_ptr + offset, mask=offset < n)
        tl.store(y_ptr + offset, twice(x), mask=offset < n)

    return double


def run(kernel, n=1000):
    """How many configs were benchmarked, what was warned of, and whether the answer is right."""
    benchmarked.clear()
    x, y = torch.arange(n, dtype=torch.float32), torch.zeros(n)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        kernel[lambda meta: (triton.cdiv(n, meta["BLOCK"]),)](x, y, n)
    told = [str(warning.message) for warning in caught if "costmodel" in str(warning.message)]
    return {"benchmarked": len(benchmarked), "warnings": told, "right": torch.equal(y, 2 * x)}


def as_in_the_docstring(folder):
    """The example's kernel, timed as the others are. Triton reads the text of a kernel from its file."""
    path = folder / "example.py"
    path.write_text(example(integration))
    kernel = workloads.load_module(path).double
    kernel.do_bench = bench
    return kernel


def slow(*arguments):
    time.sleep(0.5)


def main(store):
    report = {"all": run(autotuned())}
    pruned = autotuned(prune_configs_by=integration.prune(top_k=4, device="H200"))
    report["pruned"] = {**run(pruned), "kept_default": CONFIGS[0] in pruned.configs_timings}
    report["same_key"] = run(pruned)
    report["other_key"] = run(pruned, n=2000)
    installed = autotuned()
    integration.install(installed, top_k=3, device="H200", store=store)
    with mock.patch.object(devices, "detect", return_value=devices.find("A100-PCIE-40GB")):
        report["installed"] = run(installed)
        report["installed_again"] = run(installed)
        report["example"] = run(as_in_the_docstring(Path(store).parent))
    missing = autotuned(prune_configs_by=integration.prune(top_k=4, device="H200", model="no-such-folder"))
    report["missing"], report["missing_other_key"] = run(missing), run(missing, n=2000)
    report["no_gpu"] = run(autotuned(prune_configs_by=integration.prune(top_k=4)))
    with mock.patch.object(integration.Pruner, "rank", slow):
        report["slow"] = run(autotuned(prune_configs_by=integration.prune(top_k=4, device="H200", patience_s=0.01)))
    (variant, *_) = integration.variants(
        pruned, CONFIGS, {"x_ptr": torch.zeros(8, dtype=torch.bfloat16), "y_ptr": torch.zeros(8), "n": 8}
    )
    report["source"] = variant.kernel.source
    report["problem"] = [str(variant.problem), [(spec.shape, spec.dtype) for spec in variant.problem.inputs]]
    report["config"] = str(variant.config)
    print(json.dumps(report))


if __name__ == "__main__":
    main(sys.argv[1])
