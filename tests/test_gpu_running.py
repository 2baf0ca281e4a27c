"""The Triton runner and collector on a CPU, where Triton interprets: kernels that behave, and kernels that do not."""

import dataclasses
import os
import signal
import subprocess
import sys
from collections import Counter
from types import SimpleNamespace

import pytest
from contracts import RunnerContract

from costmodel import devices, workloads
from costmodel.cli import storing
from costmodel.measure import gpu_running, requests
from costmodel.measure.gpu_compiling import GpuBuild, Launched
from costmodel.records import Config, Kernel, Measurement, Timing, UserError, Variant
from costmodel.store import Store

pytest.importorskip("triton")
QUICK = Timing(warmup_us=0.0, min_samples=3, relative_error=0.9)
COLD = dataclasses.replace(QUICK, cache="cold")
CPU = devices.detect("cpu")
ROOT = workloads.shipped("kernels").parent

triton_kernels = workloads.load_module(workloads.shipped("collectors") / "triton_kernels.py")
cuda_kernels = workloads.load_module(workloads.shipped("collectors") / "cuda_kernels.py")

DEFINITION = """
import os

import torch
import triton
import triton.language as tl

from costmodel import tensors
from costmodel.records import Config, Launch, Problem, SearchSpace, TensorSpec
from costmodel.workloads import gpu_workload


@triton.jit
def affine(x_ptr, y_ptr, calls_ptr, n, BLOCK: tl.constexpr, DEED: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + i, mask=i < n, other=0.0)
    y = x * 2 + 1
    calls = tl.load(calls_ptr)
    tl.store(calls_ptr, calls + 1)
    if DEED == "wrong":
        y = tl.where(i == 3, y + 0.5, y)
    if DEED == "wrong_later":
        y = tl.where(calls >= tl.num_programs(0), y + 0.5, y)
    if DEED == "incomplete":
        i = tl.where(i == 5, n, i)
    tl.store(y_ptr + i, y, mask=i < n)
    if DEED == "input":
        tl.store(x_ptr + 7, 0.0)
    if DEED == "past_the_end":
        tl.store(y_ptr + n, 1.0)
    if DEED == "before_the_start":
        tl.store(y_ptr - 1, 1.0)
    if DEED == "far_away":
        tl.store(y_ptr + 1000000000000, 1.0)
    if DEED == "exception":
        tl.load(None)
    if DEED == "hang":
        while tl.load(calls_ptr, volatile=True) > 0:
            y += 0.5


def make_problem(*, N):
    return Problem("affine", (TensorSpec((N,), "f32"),), (("N", N),), 2 * N, 8 * N)


def make_inputs(problem, seed):
    if problem["N"] == 13:
        raise ArithmeticError("thirteen")
    return tensors.normal(problem.inputs, seed)


def launch(problem, config, inputs, outputs):
    (x,), (y,) = inputs, outputs
    if config["DEED"] == "abort":
        os.abort()
    if config["DEED"] == "no_launch":
        raise LookupError("nothing to launch")
    calls = torch.zeros(1, dtype=torch.int32, device=x.device)
    n = problem["N"]
    return [Launch(affine, (triton.cdiv(n, config["BLOCK"]),), (x, y, calls, n), config.as_dict())]


def is_valid(config, problem, device):
    return config["DEED"] == "none" and config["BLOCK"] <= 2 * problem["N"]


WORKLOAD = gpu_workload(
    __file__,
    space=SearchSpace.of(is_valid, BLOCK=(16, 32, 64, 128), DEED=("none", "other")),
    default=Config.of(BLOCK=32, DEED="none"),
    make_problem=make_problem,
    problems={"long": {"N": 200}, "odd": {"N": 101}, "tiny": {"N": 10}},
    make_inputs=make_inputs,
    outputs=lambda problem: problem.inputs,
    reference=lambda problem, inputs: (inputs[0] * 2 + 1,),
    launch=launch,
)
"""

# name: (status, what the reason says)
DEEDS = {
    "wrong": ("wrong_result", "on the first call: output 0: largest error"),
    "wrong_later": ("wrong_result", "on a later call: output 0: largest error"),
    "incomplete": ("wrong_result", "got nan, expected"),
    "input": ("wrong_result", "wrote to input 0"),
    "past_the_end": ("wrong_result", "wrote outside output 0"),
    "before_the_start": ("wrong_result", "wrote outside output 0"),
    "exception": ("launch_error", "Error"),
    "no_launch": ("launch_error", "LookupError: nothing to launch"),
    "abort": ("crash", "SIGABRT"),
    "far_away": ("crash", "SIGSEGV"),
    "hang": ("timeout", "the run took over 1.5 s"),
}


@pytest.fixture(scope="module")
def workload(tmp_path_factory):
    path = tmp_path_factory.mktemp("kernels") / "affine.py"
    path.write_text(DEFINITION)
    return workloads.load(path)


@pytest.fixture(scope="module")
def shared_runner(workload):
    with triton_kernels.runner(CPU, workloads=[workload], timing=QUICK, timeout_s=1.5) as runner:
        yield runner


def variant(workload, *, block=32, deed="none", n=101) -> Variant:
    return Variant(workload.kernel, workload.make_problem(N=n), Config.of(BLOCK=block, DEED=deed))


class TestInterpretedRunner(RunnerContract):
    @pytest.fixture
    def runner(self, shared_runner):
        return shared_runner

    @pytest.fixture
    def good(self, workload):
        return [variant(workload), variant(workload, block=64, n=200)]

    @pytest.fixture
    def bad(self, workload):
        unknown = dataclasses.replace(variant(workload), kernel=Kernel("unknown", "triton", "def f(): ..."))
        changed = dataclasses.replace(workload.kernel, source="another text")
        return [
            *((variant(workload, deed=deed), status) for deed, (status, _) in DEEDS.items()),
            (variant(workload, n=13), "launch_error"),
            (unknown, "launch_error"),
            (dataclasses.replace(variant(workload), kernel=changed), "launch_error"),
        ]


def test_every_misdeed_is_named_and_the_dangerous_are_run_once(shared_runner, workload, monkeypatch):
    """After the contract's tests, which have run them all: what killed or hung is answered without a worker."""
    dangerous = [variant(workload, deed=deed) for deed in ("abort", "far_away", "hang")]
    first = shared_runner.measure(dangerous)
    with monkeypatch.context() as patch:
        patch.setattr(shared_runner.worker, "run", lambda task: pytest.fail("it was run again"))
        again = shared_runner.measure(dangerous)
    assert [(m.status, m.error) for m in again] == [(m.status, m.error) for m in first]
    for deed, (status, reason) in DEEDS.items():
        (taken,) = shared_runner.measure([variant(workload, deed=deed)])
        assert (taken.status, reason in taken.error) == (status, True), taken
    (thirteen,) = shared_runner.measure([variant(workload, n=13)])
    assert thirteen.error == "inputs or reference failed: ArithmeticError: thirteen"


def test_an_input_that_was_written_to_is_made_again(shared_runner, workload):
    asked = [variant(workload, deed="input", n=200), variant(workload, n=200)]
    assert [m.status for m in shared_runner.measure(asked)] == ["wrong_result", "ok"]


def test_what_is_interpreted_is_no_gpus(shared_runner, workload, monkeypatch):
    (taken,) = shared_runner.measure([variant(workload)])
    assert taken.device == CPU
    assert "interpreted" in dict(taken.toolchain)["triton"]
    h100, h200 = devices.find("H100 SXM"), devices.find("H200")
    monkeypatch.setattr(gpu_running, "detect", lambda kind: h100)
    with pytest.raises(UserError, match=r"is run on .*H100"):
        triton_kernels.runner(h200, workloads=[workload])
    with pytest.raises(UserError, match="only Triton's are interpreted"):
        cuda_kernels.runner(CPU, workloads=[])
    with pytest.raises(UserError, match="expected cuda kernels"):
        cuda_kernels.runner(workloads=[workload])


# ---- what is infeasible ----


def test_the_infeasible_is_not_launched_and_is_no_failure(workload, monkeypatch):
    facts = (("registers", 32.0), ("stack_bytes", 0.0), ("shared_bytes", 300_000.0), ("threads_per_block", 128.0))
    build = GpuBuild("compiled", (Launched("affine", facts, {}, (), {}),), 1.5)
    monkeypatch.setattr(gpu_running, "detect", lambda kind: devices.find("H200"))
    monkeypatch.setattr(gpu_running, "tools", lambda language, device: (("triton", "none"),))
    with triton_kernels.runner(workloads=[workload]) as runner:
        monkeypatch.setattr(runner.pool, "compile", lambda wanted: [build])
        monkeypatch.setattr(runner.worker, "run", lambda task: pytest.fail("it was launched"))
        (taken,) = runner.measure([variant(workload)])
    assert taken.status == "compiled"
    assert "300000 B of shared memory a block" in taken.error
    counters = dict(taken.counters)
    assert (counters["infeasible"], counters["shared_bytes"], counters["compile_s"]) == (1.0, 300_000.0, 1.5)
    assert (taken.variant, taken.timing, 5) in gpu_running.already([taken])
    assert not gpu_running.already([dataclasses.replace(taken, counters=())])


def test_problems_of_one_config_are_compiled_one_after_the_other(workload, monkeypatch):
    monkeypatch.setattr(gpu_running, "detect", lambda kind: devices.find("H200"))
    monkeypatch.setattr(gpu_running, "tools", lambda language, device: (("triton", "none"),))
    with triton_kernels.runner(workloads=[workload], jobs=3) as runner:
        running, seen = Counter(), Counter()

        def compile_one(wanted):
            ((path, problem, config, arch),) = wanted
            running[config] += 1
            assert running[config] == 1, "two processes compile the same config"
            seen[config, problem, path, arch] += 1
            running[config] -= 1
            return [GpuBuild("compile_error", error="no")]

        monkeypatch.setattr(runner.pool, "compile", compile_one)
        asked = [variant(workload, block=block, n=n) for n in (200, 101, 10) for block in (16, 32, 64)]
        assert [(m.status, m.error) for m in runner.measure([*asked, *asked])] == [("compile_error", "no")] * 18
    assert list(seen.values()) == [1] * 9
    assert {key[2:] for key in seen} == {(str(workload.path), "sm_90")}


# ---- hardware counters ----

NCU = """#!/bin/sh
# Stands for ncu: writes what it would and runs the command behind its own options.
while [ "$1" != "--metrics" ]; do if [ "$1" = "--log-file" ]; then log="$2"; fi; shift; done
metrics="$2"; shift 2
case "$metrics" in *sm__warps_active.avg.pct_of_peak_sustained_active*) ;; *) exit 3;; esac
[ -e "$0.denied" ] && { echo "==ERROR== ERR_NVGPUCTRPERM - no permission" > "$log"; exit 1; }
"$@" || exit 4
cat > "$log" <<'END'
==PROF== Connected to process 7
"ID","Kernel Name","Metric Name","Metric Unit","Metric Value"
"0","affine","gpu__time_duration.sum","nsecond","3,000"
"0","affine","dram__bytes_read.sum","byte","1,048,576"
"0","affine","lts__t_sector_hit_rate.pct","%","40"
"0","affine","sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_active","%","n/a"
"1","affine","gpu__time_duration.sum","nsecond","1000"
"1","affine","dram__bytes_read.sum","byte","24"
"1","affine","lts__t_sector_hit_rate.pct","%","80"
END
"""


def test_hardware_counters_are_read_where_that_is_permitted(workload, tmp_path, monkeypatch):
    ncu = tmp_path / "ncu"
    ncu.write_text(NCU)
    ncu.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    with triton_kernels.runner(CPU, workloads=[workload], timing=QUICK, profile=True) as runner:
        first, again = runner.measure([variant(workload), variant(workload)])
        assert first.counters == again.counters == (("dram_read_bytes", 1048600.0), ("l2_hit_pct", 50.0))
        (tmp_path / "ncu.denied").touch()
        with pytest.warns(UserWarning, match="ERR_NVGPUCTRPERM"):
            (denied,) = runner.measure([variant(workload, block=64)])
        assert (denied.status, denied.counters) == ("ok", ())


# ---- collecting ----


def request(workload, **changes):
    values = {"workloads": (workload,), "device": CPU, "timing": QUICK, "also": (COLD,), "passes": 1}
    return triton_kernels.CollectRequest(**{**values, **changes})


def everything(workload) -> set[tuple[Variant, Timing, int]]:
    chosen = requests.choose(request(workload), CPU)
    return {(v, timing, 0) for v in chosen for timing in (QUICK, COLD)}


def places(measurements: list[Measurement]) -> list[tuple[Variant, Timing, int]]:
    return [(m.variant, m.timing, int(dict(m.counters)["pass"])) for m in measurements]


def test_a_budget_ends_it_with_everything_yielded_and_the_rest_comes_next_time(workload, monkeypatch):
    seconds = iter(range(10**6))
    monkeypatch.setattr(gpu_running, "time", SimpleNamespace(monotonic=lambda: next(seconds)))
    first = list(triton_kernels.collect(request(workload, budget_s=5)))
    assert 2 <= len(first) < len(everything(workload))
    assert {m.status for m in first} == {"ok"}
    known = triton_kernels.already(first)
    rest = list(triton_kernels.collect(request(workload, skip=known)))
    assert sorted(map(repr, places(first) + places(rest))) == sorted(map(repr, everything(workload)))
    assert list(triton_kernels.collect(request(workload, budget_s=0))) == []


def test_blocks_hold_whole_configs_of_one_kernel(workload):
    sittings = [
        (variant(workload, block=block, n=n), timing)
        for n in range(16, 23)
        for block in (16, 32, 64, 128)
        for timing in (QUICK, COLD)
    ]
    other = dataclasses.replace(workload.kernel, name="other", source="other")
    sittings += [(dataclasses.replace(v, kernel=other), timing) for v, timing in sittings]
    blocks = gpu_running.plan(sittings, seed=3)
    assert Counter(sitting for block in blocks for sitting in block) == Counter(sittings)
    assert blocks == gpu_running.plan(sittings, seed=3) != gpu_running.plan(sittings, seed=4)
    groups = [{(v.kernel, v.config) for v, _ in block} for block in blocks]
    assert sum(map(len, groups)) == 8
    assert all(len({kernel for kernel, _ in group}) == 1 for group in groups)
    assert max(map(len, blocks)) <= 40
    for block in blocks:  # the timings of one variant stand side by side
        assert [v for v, _ in block[::2]] == [v for v, _ in block[1::2]]


COLLECT = """
import sys
from costmodel import devices, workloads
from costmodel.records import Timing
from costmodel.store import Store

collector = workloads.load_module(workloads.shipped("collectors") / "triton_kernels.py")
workload, device = workloads.load(sys.argv[1]), devices.detect(sys.argv[3])
timings = [Timing(cache=c, warmup_us=0.0, min_samples=3, relative_error=0.9) for c in ("warm", "cold")]
with Store(sys.argv[2]) as store:
    known = [m for t in timings for m in collector.stored(store, device=device, timing=t, kernels=[workload.kernel])]
    print("known", len(known), flush=True)
    request = collector.CollectRequest(
        workloads=(workload,), device=device, timing=timings[0], also=timings[1:], passes=1,
        skip=collector.already(known),
    )
    for measurement in collector.collect(request):
        store.add([measurement])
        print("stored", flush=True)
"""


def survives_kill_9(workload, tmp_path, kind: str) -> None:
    """A collecting process is killed; the next one measures what is left, on the device of this kind."""
    command = [sys.executable, "-c", COLLECT, str(workload.path), str(tmp_path / "s.sqlite"), kind]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    first = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    lines = [first.stdout.readline() for _ in range(4)]
    assert lines == ["known 0\n", "stored\n", "stored\n", "stored\n"]
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()
    with Store(tmp_path / "s.sqlite") as store:
        before = len(list(store.measurements()))
    assert before >= 3
    second = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    said = second.stdout.split("\n")[:-1]
    assert said == [f"known {before}", *["stored"] * (len(everything(workload)) - before)]
    with Store(tmp_path / "s.sqlite") as store:
        assert set(places(list(store.measurements()))) == everything(workload)


def test_after_kill_9_only_the_rest_is_measured(workload, tmp_path):
    survives_kill_9(workload, tmp_path, "cpu")


# ---- the command line ----


def test_commands_find_the_collectors_and_time_a_gpu_in_both_ways():
    for language, module in (("triton", triton_kernels), ("cuda", cuda_kernels)):
        assert workloads.collector_of(language) is module
        assert [timing.cache for timing in storing._timings(None, language)] == ["warm", "cold"]
        assert storing._timings("cold", language) == [Timing(cache="cold")]
    assert storing._timings(None, "cpp") == [Timing()]
    with pytest.raises(UserError, match="got --timing both for cpp kernels, expected warm or cold"):
        storing._timings("both", "cpp")
