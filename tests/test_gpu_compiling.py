"""Compiling GPU kernels with no GPU: facts, feasibility by hand, and what a hang, a crash or a kill costs."""

import math
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from costmodel import devices, workloads
from costmodel.measure.facts import CLASSES
from costmodel.measure.gpu_compiling import GpuCompilePool, toolchain
from costmodel.records import Config, Timing, UserError

pytest.importorskip("triton")

facts_collector = workloads.load_module(workloads.shipped("collectors") / "compile_facts.py")

# A product of blocks whose pipeline holds STAGES - 1 (sm_8x) or STAGES (sm_90) times 128 x 64 of A and 64 x 128 of B in
# f16, 32 KiB, in shared memory; then a second kernel. MISCHIEF is what happens instead while it is compiled.
DEFINITION = """
import os
import signal
import subprocess
import time

import torch
import triton
import triton.language as tl

from costmodel.records import Config, Launch, Problem, SearchSpace, TensorSpec
from costmodel.workloads import gpu_workload


@triton.jit
def blocks(a_ptr, b_ptr, c_ptr, N, K, BLOCK: tl.constexpr, BLOCK_K: tl.constexpr):
    m, n, k = tl.arange(0, BLOCK), tl.arange(0, BLOCK), tl.arange(0, BLOCK_K)
    a = a_ptr + (tl.program_id(0) * BLOCK + m)[:, None] * K + k[None, :]
    b = b_ptr + k[:, None] * N + (tl.program_id(1) * BLOCK + n)[None, :]
    product = tl.zeros((BLOCK, BLOCK), tl.float32)
    for _ in range(0, K, BLOCK_K):
        product = tl.dot(tl.load(a), tl.load(b), product)
        a += BLOCK_K
        b += BLOCK_K * N
    tl.store(c_ptr + m[:, None] * N + n[None, :], product)


@triton.jit
def double(c_ptr, N, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(c_ptr + i, 2 * tl.load(c_ptr + i, i < N), i < N)


def make_problem(*, N):
    spec = TensorSpec((N, N), "f16")
    return Problem("doubled", (spec, spec), (("N", N),), 2 * N**3, 8 * N * N)


def launch(problem, config, inputs, outputs):
    match config["MISCHIEF"]:
        case "hang":
            subprocess.run(["sleep", os.environ.get("TRITON_HANG_S", "3600")])
        case "crash":
            os.write(2, b"LLVM ERROR: out of luck\\\\n")
            os.kill(os.getpid(), signal.SIGABRT)
        case "refuse":
            raise ValueError("not this one")
    (a, b), (c,), N = inputs, outputs, problem["N"]
    block = 100 if config["MISCHIEF"] == "odd" else 128
    options = {"num_warps": config["num_warps"], "num_stages": config["STAGES"]}
    grid = (triton.cdiv(N, 128), triton.cdiv(N, 128))
    return [
        Launch(blocks, grid, (a, b, c, N, N), {"BLOCK": block, "BLOCK_K": 64, **options}),
        Launch(double, (triton.cdiv(N * N, 512),), (c, N * N), {"BLOCK": 512, "num_warps": 4}),
    ]


WORKLOAD = gpu_workload(
    __file__,
    space=SearchSpace.of(
        lambda config, problem, device: config["MISCHIEF"] in ("no", "odd"),
        STAGES=(2, 3, 4, 5, 6, 7, 8), num_warps=(1, 4, 8), MISCHIEF=("no", "hang", "crash", "refuse", "odd")
    ),
    default=Config.of(STAGES=3, num_warps=8, MISCHIEF="no"),
    make_problem=make_problem,
    problems={"large": {"N": 4096}, "small": {"N": 512}},
    make_inputs=lambda problem, seed: (),
    outputs=lambda problem: (TensorSpec((problem["N"], problem["N"]), "f32"),),
    reference=lambda problem, inputs: inputs,
    launch=launch,
)
"""


@pytest.fixture(scope="module")
def workload(tmp_path_factory):
    path = tmp_path_factory.mktemp("kernels") / "doubled.py"
    path.write_text(DEFINITION.replace("\\\\n", "\\n"))
    return workloads.load(path)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Triton's disk cache of the processes that these tests start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cubins")))
        yield


@pytest.fixture(scope="module")
def pool(cache):
    with GpuCompilePool(jobs=1) as pool:
        yield pool


def wanted(workload, arch, problem="large", **params):
    config = Config.of(**{**workload.default.as_dict(), **params})
    return (workload.path, workload.problems[problem], config, arch)


# (device, STAGES) -> how many times 32 KiB are buffered, and whether they fit, by hand from the published limits:
# 163 KiB on sm_80, 99 KiB on sm_86, 227 KiB on sm_90, where the tensor cores read the oldest stage from shared memory.
BY_HAND = {
    ("A100-SXM4-80GB", 6): (5, True), ("A100-SXM4-80GB", 7): (6, False),
    ("RTX 3090", 4): (3, True), ("RTX 3090", 5): (4, False),
    ("H200", 7): (7, True), ("H200", 8): (8, False),
}  # fmt: skip


def test_feasibility_is_what_it_is_by_hand(pool, workload):
    cases = [(devices.find(name), stages, *answer) for (name, stages), answer in BY_HAND.items()]
    builds = pool.compile([wanted(workload, device.arch, STAGES=stages) for device, stages, _, _ in cases])
    for (device, _, buffered, fits), build in zip(cases, builds, strict=True):
        assert build.status == "compiled", build.error
        assert dict(build.facts)["shared_bytes"] == buffered * (32 << 10)
        assert (build.infeasible(device) == "") == fits
        assert fits or f"{buffered << 15} B of shared memory" in build.infeasible(device)


@pytest.mark.parametrize(("arch", "last"), [("sm_80", "cubin"), ("sm_90", "cubin"), ("gfx942", "hsaco")])
def test_facts_of_two_launches(pool, workload, arch, last):
    (build,) = pool.compile([wanted(workload, arch)], stages=("ttir", "ptx"))
    product, doubled = build.launches
    assert (product.name, doubled.name) == ("blocks", "double")
    assert dict(product.facts)["tensor_ops"] > 0 == dict(doubled.facts)["tensor_ops"]
    assert dict(build.facts)["instructions"] == sum(dict(x.facts)["instructions"] for x in build.launches)
    assert dict(build.facts)["threads_per_block"] == (512 if arch == "gfx942" else 256)
    assert dict(build.facts)["launches"] == 2
    assert next(iter(product.stage_s)) == "ttir"
    assert list(product.stage_s)[-1] == last
    assert build.compile_s == pytest.approx(sum(s for x in build.launches for s in x.stage_s.values()))
    assert product.text["ttir"].startswith(("module", "#loc"))
    assert ("ptx" in product.text) == arch.startswith("sm_")
    assert set(CLASSES) <= set(dict(build.facts))


def test_a_spill_is_seen_and_is_no_infeasibility(pool, workload):
    (build,) = pool.compile([wanted(workload, "sm_80", num_warps=1)])
    assert dict(build.facts)["stack_bytes"] > 0
    assert dict(build.facts)["local_stores"] > 0
    assert build.infeasible(devices.find("A100-SXM4-80GB")) == ""


def test_problems_that_specialize_alike_are_one_kernel_and_the_cache_is_tritons(pool, workload):
    (large, small) = pool.compile([wanted(workload, "sm_80"), wanted(workload, "sm_80", "small")])
    assert large.facts == small.facts
    assert large.compile_s == small.compile_s > 0
    with GpuCompilePool(jobs=1, instructions=False) as other:
        (again,) = other.compile([wanted(workload, "sm_80")])
        assert math.isnan(again.compile_s)
        assert again.facts[:5] == large.facts[:5]
        assert "instructions" not in dict(again.facts)
        (fresh,) = other.compile([wanted(workload, "sm_80")], fresh=True)
        assert fresh.compile_s > 0


def test_what_a_compile_cannot_do_is_its_status_in_one_line_and_costs_only_itself(pool, workload):
    mischief = [wanted(workload, "sm_80", MISCHIEF=name) for name in ("crash", "no", "refuse", "odd")]
    crash, good, refuse, odd, unknown, far = pool.compile(
        [*mischief, wanted(workload, "xe-hpc"), wanted(workload, "gfx900")]
    )
    assert good.status == "compiled"
    for build in (crash, refuse, odd, unknown, far):
        assert (build.status, build.launches, build.facts) == ("compile_error", (), ())
        assert "\n" not in build.error
    assert "signal SIGABRT, LLVM ERROR: out of luck" in crash.error
    assert refuse.error == "ValueError: not this one"
    assert "must be a power of 2 (line " in odd.error
    assert "got architecture 'xe-hpc'" in unknown.error
    assert "unsupported target: 'gfx900'" in far.error


def test_cuda_goes_the_same_way(pool, workload):
    pytest.importorskip("cuda.bindings.nvrtc")
    transpose = workloads.load("cuda/transpose")
    problem = next(iter(transpose.problems.values()))
    triton, cuda = pool.compile([wanted(workload, "sm_90"), (transpose.path, problem, transpose.default, "sm_90")])
    assert (triton.status, cuda.status) == ("compiled", "compiled")
    found = dict(cuda.facts)
    assert found["shared_stores"] > 0
    assert found["global_loads"] > 0 == found["tensor_ops"]
    assert cuda.compile_s > 0
    assert cuda.infeasible(devices.find("H200")) == ""
    (refused,) = pool.compile([(transpose.path, problem, Config.of(TILE="none"), "sm_90")])
    assert refused.status == "compile_error"
    assert refused.error


def children_of(word: str) -> list[int]:
    """Processes whose command line holds a word."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if word.encode() in (folder / "cmdline").read_bytes().split(b"\0"):
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def wait_until(condition):
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_hang_is_a_timeout_and_leaves_nothing_behind(cache, workload, monkeypatch):
    mark = f"36{os.getpid()}"
    monkeypatch.setenv("TRITON_HANG_S", mark)
    with GpuCompilePool(jobs=1, timeout_s=1.0) as pool:
        (build,) = pool.compile([wanted(workload, "sm_80", MISCHIEF="hang")])
    assert (build.status, build.error) == ("timeout", "compiling took over 1 s")
    wait_until(lambda: not children_of(mark))


def test_processes_end_when_their_supervisor_is_killed(cache, workload, monkeypatch):
    mark = f"37{os.getpid()}"
    monkeypatch.setenv("TRITON_HANG_S", mark)
    script = f"""
        from costmodel import workloads
        from costmodel.measure.gpu_compiling import GpuCompilePool
        from costmodel.records import Config
        w = workloads.load({str(workload.path)!r})
        config = Config.of(**{{**w.default.as_dict(), "MISCHIEF": "hang"}})
        GpuCompilePool(jobs=1).compile([(w.path, w.problems["large"], config, "sm_80")])
    """
    root = str(Path(__file__).resolve().parent.parent)
    supervisor = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], cwd=root)
    wait_until(lambda: children_of(mark))
    supervisor.send_signal(signal.SIGKILL)
    supervisor.wait()
    wait_until(lambda: not children_of(mark))


def test_without_triton_it_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "triton.py").write_text("raise ImportError('no triton here')\n")
    (tmp_path / "kernel.py").write_text("")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with GpuCompilePool(jobs=1) as pool, pytest.raises(UserError, match=r"compiles triton \(no triton here\)"):
        pool.compile_function(tmp_path / "kernel.py", "", "i32", Config.of(), "sm_90")


def collected(workload, **changes):
    options = {"configs_per_kernel": 3, "problems": ("large",), "device": devices.find("L4"), "jobs": 1}
    return list(
        facts_collector.collect(facts_collector.CollectRequest(workloads=(workload,), **{**options, **changes}))
    )


def test_the_collector_stores_facts_and_skips_what_it_has(cache, workload):
    taken = collected(workload)
    assert len(taken) == 3
    for m in taken:
        counters = dict(m.counters)
        assert m.toolchain == toolchain("triton", m.device)
        assert [name for name, _ in m.toolchain] == ["triton", "ptxas"]
        assert m.timing == Timing()
        assert not m.samples_us
        if m.status == "compiled":
            assert counters["infeasible"] == bool(m.error) == (counters["blocks_per_unit"] == 0)
            assert counters["compile_s"] > 0
        else:
            assert (m.status, dict(m.variant.config.params)["MISCHIEF"]) == ("compile_error", "odd")
            assert not m.counters
    assert collected(workload, skip=facts_collector.already(taken)) == []
    assert collected(workload, budget_s=0.0) == []
    with pytest.raises(UserError, match="got device Intel Gaudi 2 for triton kernel doubled, expected a GPU"):
        collected(workload, device=devices.find("Gaudi 2"))
    with pytest.raises(UserError, match="got no device"):
        collected(workload, device=None)
