"""Compile facts without a GPU: how long a space takes, what does not fit, and whether that is right.

    python benchmarks/offline_compile.py

36 configs of triton/matmul, compiled for each device by as many processes as there are processors, every cache passed
over. Whether a config fits is also counted by hand: the operands of all stages that are in flight (num_stages of them
with wgmma's asynchronous reads on sm_90, one less before) against the shared memory that the vendor's guide allows a
block. Then the default of every shipped Triton and CUDA kernel on each of its problems, for two devices: what fails,
does not fit, spills, or makes no use of tensor cores where there is a product. The last line is one JSON document.
"""

import itertools
import json
import os
import statistics
import time

from costmodel import devices, workloads
from costmodel.measure.gpu_compiling import GpuCompilePool
from costmodel.records import Config

BLOCKS, DEPTHS, STAGES, WARPS = (64, 128, 256), (32, 64), (3, 4), 8
PRODUCTS = ("matmul", "attention", "fused_mlp", "conv2d")  # what Triton is to run on tensor cores
# Shared memory of a block, CUDA programming guide, table of technical specifications by compute capability.
LIMITS_KIB = {"H200": 227, "A100-SXM4-80GB": 163, "RTX 3090": 99}
BYTES = 2  # an element of f16


def fits_by_hand(config, device, name):
    in_flight = config["num_stages"] - (0 if device.arch == "sm_90" else 1)
    operands = BYTES * (config["BLOCK_M"] + config["BLOCK_N"]) * config["BLOCK_K"]
    return in_flight * operands <= LIMITS_KIB[name] << 10


def one_device(name, pool, workload, configs):
    device, problem = devices.find(name), next(iter(workload.problems.values()))
    began = time.perf_counter()
    builds = pool.compile([(workload.path, problem, config, device.arch) for config in configs], fresh=True)
    wall_s = time.perf_counter() - began
    failed = [build.error for build in builds if build.status != "compiled"]
    assert not failed, failed[0]
    told = [build.infeasible(device) == "" for build in builds]
    by_hand = [fits_by_hand(config, device, name) for config in configs]
    return {
        "device": name, "configs": len(configs), "wall_s": round(wall_s, 1),
        "median_compile_s": round(statistics.median(build.compile_s for build in builds), 2),
        "slowest_compile_s": round(max(build.compile_s for build in builds), 2),
        "do_not_fit": told.count(False), "spill": sum(dict(build.facts)["stack_bytes"] > 0 for build in builds),
        "right": sum(a == b for a, b in zip(told, by_hand, strict=True)),
    }  # fmt: skip


def defaults(language, name, pool):
    """Of a language's kernels on a device: how many defaults were compiled, and what is wrong with which."""
    device, wanted, labels = devices.find(name), [], []
    for kernel in workloads.names(language):
        workload = workloads.load(f"{language}/{kernel}")
        for problem_name, problem in workload.problems.items():
            if workload.space.is_valid(workload.default, problem, device):  # f8 is for those that have it
                wanted.append((workload.path, problem, workload.default, device.arch))
                labels.append(f"{kernel}[{problem_name}]")
    wrong = {}
    for label, build in zip(labels, pool.compile(wanted), strict=True):
        found = dict(build.facts)
        product = language == "triton" and label.startswith(PRODUCTS)
        troubles = (
            build.error or build.infeasible(device),
            "spills" if found.get("stack_bytes") else "",
            "no tensor cores" if product and not found.get("tensor_ops") else "",
        )
        if any(troubles):
            wrong[label] = ", ".join(filter(None, troubles))
    return {"language": language, "device": name, "defaults": len(wanted), "wrong": wrong}


def main():
    workload = workloads.load("triton/matmul")
    configs = [
        Config.of(BLOCK_M=m, BLOCK_N=n, BLOCK_K=k, GROUP_M=8, num_warps=WARPS, num_stages=stages)
        for m, n, k, stages in itertools.product(BLOCKS, BLOCKS, DEPTHS, STAGES)
    ]
    rows = []
    with GpuCompilePool(jobs=len(os.sched_getaffinity(0))) as pool:
        pool.compile([(workload.path, next(iter(workload.problems.values())), workload.default, "sm_80")])  # starts it
        for name in LIMITS_KIB:
            rows.append(one_device(name, pool, workload, configs))
            print("  ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
        shipped = []
        for language, name in itertools.product(("triton", "cuda"), ("H200", "A100-SXM4-80GB")):
            shipped.append(defaults(language, name, pool))
            print("  ".join(f"{key} {value}" for key, value in shipped[-1].items()), flush=True)
    print(json.dumps({"kernel": "triton/matmul", "processes": pool.jobs, "rows": rows, "shipped": shipped}))


if __name__ == "__main__":
    main()
