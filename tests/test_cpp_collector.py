"""The C++ runner and collector on a small kernel, and on kernels that misbehave in every way we know."""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from contracts import RunnerContract

from costmodel import workloads
from costmodel.measure import compiling
from costmodel.records import Config, Device, Kernel, Timing, UserError, Variant

cpp = workloads.load_module(workloads.shipped("collectors") / "cpp_kernels.py")

DEVICE = Device("test", "cpu", "maker", "arch", 2, 2000.0, (("f32", 0.1),), 20.0, 1 << 20)
QUICK = Timing(warmup_us=100.0, min_samples=3, relative_error=0.5)

DEFINITION = """
import numpy as np
from costmodel.records import Config, Problem, SearchSpace, TensorSpec
from costmodel.workloads import cpp_workload


def make_problem(*, N):
    return Problem("affine", (TensorSpec((N,), "f32"),), (("N", N),), 2 * N, 8 * N)


def make_inputs(problem, seed):
    if problem["N"] == 13:
        raise ArithmeticError("thirteen")
    return (np.random.default_rng(seed).random(problem["N"], dtype=np.float32),)


def reference(problem, inputs):
    return (inputs[0] * 2 + 1,)


def is_valid(config, problem, device):
    return config["UNROLL"] <= problem["N"] and config["THREADS"] <= device.num_units


WORKLOAD = cpp_workload(
    __file__,
    space=SearchSpace.of(is_valid, UNROLL=(1, 2, 4), THREADS=(1, 2)),
    default=Config.of(UNROLL=1, THREADS=1),
    make_problem=make_problem,
    problems={"long": {"N": 20_000}, "odd": {"N": 1001}, "tiny": {"N": 3}},
    make_inputs=make_inputs,
    reference=reference,
)
"""

GOOD = """
extern "C" void run(void* const* buffers, const long long* sizes) {
    const float* x = (const float*)buffers[0];
    float* y = (float*)buffers[1];
    const long n = sizes[0];
#pragma omp parallel for num_threads(THREADS)
    for (long i = 0; i < n; ++i) y[i] = x[i] * 2 + 1;
}
"""

PROLOGUE = """
extern "C" {
void exit(int); void abort(); int fork(); int setsid(); int pause(); int getppid(); int kill(int, int);
void* malloc(unsigned long); long write(int, const void*, unsigned long); unsigned sleep(unsigned);
int printf(const char*, ...);
}
static void right(void* const* buffers, const long long* sizes) {
    for (long i = 0; i < sizes[0]; ++i) ((float*)buffers[1])[i] = ((const float*)buffers[0])[i] * 2 + 1;
}
static volatile int zero = 0, calls = 0;
"""

# name: (what run does after the right answer was written, status, what the reason says)
EVIL = {
    "segfault": ("*(volatile int*)8 = 1;", "crash", "SIGSEGV"),
    "spin": ("while (!zero) {}", "timeout", "no result after 1.5 s"),
    "sleep": ("sleep(1000);", "timeout", "no result after 1.5 s"),
    "allocation": (
        "for (;;) { volatile char* p = (char*)malloc(1 << 20); for (int i = 0; i < 1 << 20; i += 4096) p[i] = 1; }",
        "crash",
        "out of memory",
    ),
    "stack": ("overflow(1);", "crash", "stack overflow"),
    "division": ("calls = 7 / zero;", "crash", "SIGFPE"),
    "abort": ("abort();", "crash", "SIGABRT"),
    "past_the_end": ("((float*)buffers[1])[sizes[0]] = 1;", "wrong_result", "wrote past the end of output 0"),
    "far_past_the_end": ("((volatile float*)buffers[1])[sizes[0] + 4096] = 1;", "crash", "SIGSEGV"),
    "before_the_start": ("((volatile float*)buffers[1])[-1] = 1;", "crash", "SIGSEGV"),
    "wrong": (
        "((float*)buffers[1])[sizes[0] / 2] += 0.5f;",
        "wrong_result",
        "on the first call: output 0: largest error",
    ),
    "wrong_later": ("if (++calls > 1) ((float*)buffers[1])[0] += 0.5f;", "wrong_result", "on a later call"),
    "stale": ("if (++calls > 1) ((float*)buffers[1])[0] = zero / 0.0f;", "wrong_result", "got nan, expected"),
    "input": ("((float*)buffers[0])[7] = 0;", "wrong_result", "wrote to input 0"),
    "exit": ("exit(0);", "crash", "ended the process, exit code 0"),
    "exit_later": ("if (++calls > 2) exit(3);", "crash", "exit code 3"),
    "survivor": ("if (!calls++ && !fork()) { setsid(); if (!fork()) pause(); pause(); }", "crash", "left "),
    "descriptors": ('for (int i = 0; i < 64; ++i) write(i, "\\x02\\0\\0\\0{}", 6);', "crash", "garbled its result"),
    "parent": ("kill(getppid(), 9);", "crash", "the worker died"),
    "undefined": ("extern void nowhere(); nowhere();", "launch_error", "nowhere"),
    "syntax": ("this is no C++;", "compile_error", "error: "),
}


def evil_source(body: str) -> str:
    overflow = "static int overflow(volatile int n) { volatile char s[4096]; s[0] = n; return overflow(n + 1) + s[0]; }"
    head = PROLOGUE + (overflow if "overflow" in body else "")
    signature = 'extern "C" void run(void* const* buffers, const long long* sizes)'
    return f"{head}\n{signature} {{\nright(buffers, sizes);\n{body}\n}}\n"


@pytest.fixture(scope="module")
def workload(tmp_path_factory):
    path = tmp_path_factory.mktemp("kernels") / "affine.py"
    path.write_text(DEFINITION)
    path.with_suffix(".cpp").write_text(GOOD)
    return workloads.load(path)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def with_source(workload, name, source):
    return dataclasses.replace(workload, kernel=Kernel(name, "cpp", source))


@pytest.fixture(scope="module")
def evil(workload):
    return {name: with_source(workload, name, evil_source(body)) for name, (body, _, _) in EVIL.items()}


@pytest.fixture(scope="module")
def cpu(workload, evil, cache):
    options = {"timing": QUICK, "timeout_s": 1.5, "memory_bytes": 128 << 20, "cache": cache}
    with cpp.runner(DEVICE, workloads=[workload, *evil.values()], **options) as runner:
        yield runner


def variant(workload, problem="odd", **params):
    config = {**workload.default.as_dict(), **params}
    return Variant(workload.kernel, workload.problems[problem], Config(tuple(config.items())))


class TestCppRunner(RunnerContract):
    @pytest.fixture
    def runner(self, cpu):
        return cpu

    @pytest.fixture
    def good(self, workload):
        return [variant(workload), variant(workload, "long", UNROLL=4), variant(workload, "tiny", THREADS=2)]

    @pytest.fixture
    def bad(self, workload, evil):
        names = ("wrong", "segfault", "syntax", "undefined", "spin")
        stranger = Variant(Kernel("stranger", "cpp", GOOD + "\n"), workload.problems["odd"], workload.default)
        return [*((variant(evil[name]), EVIL[name][1]) for name in names), (stranger, "launch_error")]


@pytest.mark.parametrize("name", EVIL)
def test_misbehaviour_ends_as_a_status_with_its_reason(cpu, workload, evil, name):
    _, status, reason = EVIL[name]
    bad, good = cpu.measure([variant(evil[name]), variant(workload)])
    assert (bad.status, bad.samples_us) == (status, ())
    assert reason in bad.error
    assert good.status == "ok", good.error


def test_a_survivor_is_gone_when_the_measurement_returns(cpu, evil):
    mark = f"survivor{os.getpid()}"[:15]
    body = f'if (!calls++ && !fork()) {{ setsid(); prctl(15, "{mark}"); pause(); }}'
    kernel = with_source(evil["survivor"], "marked", 'extern "C" int prctl(int, ...);\n' + evil_source(body))
    cpu.paths[kernel.kernel] = str(kernel.path)
    (measurement,) = cpu.measure([variant(kernel)])
    assert "left 1 process" in measurement.error
    assert mark not in {name for name, _ in processes().values()}


def processes() -> dict[int, tuple[str, int]]:
    """Name and parent of every process, by pid."""
    found = {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            head, _, tail = Path(f"/proc/{pid}/stat").read_text().rpartition(")")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if tail.split()[0] != "Z":
            found[int(pid)] = (head.partition("(")[2], int(tail.split()[1]))
    return found


def test_a_megabyte_of_garbage_is_printed_into_the_void(cpu, workload, capfd):
    body = (
        'for (int i = 0; i < 16384; ++i) for (int f = 1; f < 3; ++f) write(f, "\\xff\\0\\x1b[2J\\x80" "%58s\\n", 64);'
    )
    loud = with_source(workload, "loud", evil_source(body))
    cpu.paths[loud.kernel] = str(loud.path)
    (measurement,) = cpu.measure([variant(loud)])
    assert measurement.status == "ok", measurement.error
    assert dict(measurement.counters)["printed_bytes"] == 64 << 10  # the cap
    assert capfd.readouterr() == ("", "")


def test_what_a_dying_kernel_prints_last_is_its_reason(cpu, workload):
    body = 'write(2, "free(): invalid pointer\\n", 24); abort();'
    kernel = with_source(workload, "talks", evil_source(body))
    cpu.paths[kernel.kernel] = str(kernel.path)
    (measurement,) = cpu.measure([variant(kernel)])
    assert measurement.error == "SIGABRT (abort): free(): invalid pointer"


def test_inputs_that_cannot_be_made_are_a_launch_error(cpu, workload):
    problem = workload.make_problem(N=13)
    (measurement,) = cpu.measure([Variant(workload.kernel, problem, workload.default)])
    assert (measurement.status, measurement.error) == (
        "launch_error", "inputs or reference failed: ArithmeticError: thirteen",
    )  # fmt: skip


def test_cold_timing_is_slower_than_warm(workload, cache):
    chosen = [variant(workload, "long")] * 3
    minima = {}
    for kind in ("warm", "cold"):
        with cpp.runner(
            DEVICE, workloads=[workload], cache=cache, timing=dataclasses.replace(QUICK, cache=kind)
        ) as cpu:
            minima[kind] = min(m.min_us for m in cpu.measure(chosen))
    assert minima["cold"] > minima["warm"]


# ---- compiling ----


def test_one_library_serves_all_problems_and_is_found_again(workload, tmp_path):
    chosen = [variant(workload, name, UNROLL=u) for name in workload.problems for u in (1, 2)]
    with cpp.runner(DEVICE, workloads=[workload], cache=tmp_path) as cpu:
        first = cpu.compile(chosen)
    libraries = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.so")}
    assert len(libraries) == 2
    assert {build.library for build in first} == set(libraries)
    with cpp.runner(DEVICE, workloads=[workload], cache=tmp_path, jobs=1) as cpu:
        assert cpu.compile(chosen) == first
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.suffix} == libraries


def test_reserved_parameters_become_flags_and_all_become_macros():
    config = Config.of(OPT=3, FASTMATH=1, VECTOR_BITS=512, TILE=8, FUSE=True)
    flags = compiling.flags_of(config)
    assert flags[:2] == ["-O3", "-ffast-math"]
    assert flags[-5:] == ["-DOPT=3", "-DFASTMATH=1", "-DVECTOR_BITS=512", "-DTILE=8", "-DFUSE=1"]
    assert compiling.flags_of(Config.of(OPT=2, FASTMATH=0)) == ["-DOPT=2", "-DFASTMATH=0"]


def fake_compiler(folder: Path, script: str) -> str:
    path = folder / "fake++"
    path.write_text(f'#!/bin/sh\ncase "$*" in *-shared*) {script} ;; *) echo "fake++ 1.2.3" ;; esac\n')
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("sleep 100", "compiling took over 0.5 s"),
        ("echo noise; echo 'x.cpp:1:2: error: first'; echo 'error: second'; exit 1", "x.cpp:1:2: error: first"),
        ("exit 0", "the compiler ended with code 0"),
        ("kill -9 $$", "the compiler ended with code -9"),
    ],
)
def test_a_failing_compiler_is_a_compile_error(workload, tmp_path, monkeypatch, script, reason):
    monkeypatch.setenv("CXX", fake_compiler(tmp_path, script))
    with cpp.runner(DEVICE, workloads=[workload], cache=tmp_path, compile_timeout_s=0.5) as cpu:
        (measurement,) = cpu.measure([variant(workload)])
    assert (measurement.status, measurement.error) == ("compile_error", reason)
    assert measurement.toolchain[0] == ("cxx", "g++ 1.2.3")


def test_a_full_disk_stops_the_run_and_blames_no_kernel(workload, tmp_path, monkeypatch):
    script = "echo 'ld: cannot write: No space left on device'; exit 1"
    monkeypatch.setenv("CXX", fake_compiler(tmp_path, script))
    with cpp.runner(DEVICE, workloads=[workload], cache=tmp_path) as cpu, pytest.raises(UserError, match="is full"):
        cpu.measure([variant(workload)])


def test_no_compiler_is_one_line_that_says_what_to_install(workload, monkeypatch, tmp_path):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"apt install g\+\+") as caught:
        cpp.runner(DEVICE, workloads=[workload])
    assert "\n" not in str(caught.value)
    monkeypatch.setenv("CXX", "/no/such/compiler")
    with pytest.raises(UserError, match="CXX=/no/such/compiler"):
        cpp.runner(DEVICE, workloads=[workload])


@pytest.mark.parametrize(
    ("options", "words"),
    [({"pin": 10**6}, "expected one of the cores"), ({"jobs": 0}, "jobs=0"), ({"pim": 1}, "'pim', expected one of")],
)
def test_wrong_options_are_refused(workload, options, words):
    with pytest.raises(UserError, match=words):
        cpp.runner(DEVICE, workloads=[workload], **options)


# ---- collecting ----


@pytest.fixture
def calm(monkeypatch):
    """A sentinel that never drifts: what is tested is not this machine's quiet."""
    monkeypatch.setattr(cpp.CppRunner, "sentinel_us", lambda self, threads: 1000.0)


def request_for(workload, cache, **changes):
    return cpp.CollectRequest(
        **{"workloads": (workload,), "timing": QUICK, "device": DEVICE, "cache": cache, **changes}
    )


def test_every_variant_once_per_pass_and_resumed_without_repeats(workload, cache, calm):
    request = request_for(workload, cache)
    expected = {v for problem in workload.problems.values() for v in workload.variants(problem, DEVICE)}
    taken = list(cpp.collect(request))
    ordinary = [m for m in taken if dict(m.counters)["pass"] < 2]
    assert {m.status for m in taken} == {"ok"}
    assert Counter(m.variant for m in ordinary) == dict.fromkeys(expected, 2)
    assert {(m.variant, dict(m.counters)["pass"]) for m in ordinary} == {(v, n) for v in expected for n in (0, 1)}
    assert [m.variant for m in ordinary[: len(expected)]] != [m.variant for m in ordinary[len(expected) :]]
    half = ordinary[: len(expected) + 3]
    rest = [
        m for m in cpp.collect(dataclasses.replace(request, skip=cpp.already(half))) if dict(m.counters)["pass"] < 2
    ]
    assert Counter(m.variant for m in half + rest) == dict.fromkeys(expected, 2)


def test_a_failure_is_measured_once_and_skipped_on_resume(workload, evil, cache, calm):
    request = request_for(evil["wrong"], cache, problems=("odd",))
    taken = list(cpp.collect(request))
    assert {m.status for m in taken} == {"wrong_result"}
    assert Counter(m.variant for m in taken) == dict.fromkeys(cpp.choose(request, DEVICE), 1)
    assert list(cpp.collect(dataclasses.replace(request, skip=cpp.already(taken)))) == []


def test_a_sample_is_seeded_holds_the_default_and_is_shared_by_problems(workload, cache):
    request = request_for(workload, cache, configs_per_kernel=3, problems=("long", "odd"))
    chosen = cpp.choose(request, DEVICE)
    by_problem = [[v.config for v in chosen if v.problem == workload.problems[name]] for name in ("long", "odd")]
    assert by_problem[0] == by_problem[1]
    assert len(by_problem[0]) == 3
    assert workload.default in by_problem[0]
    assert chosen == cpp.choose(request, DEVICE)
    samples = {tuple(cpp.choose(dataclasses.replace(request, seed=seed), DEVICE)) for seed in range(9)}
    assert len(samples) > 1
    tiny = cpp.choose(request_for(workload, cache, problems=("tiny",)), DEVICE)
    assert {v.config["UNROLL"] for v in tiny} == {1, 2}


def test_time_budget_stops_between_blocks(workload, cache, calm):
    assert list(cpp.collect(request_for(workload, cache, budget_s=0.0))) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"passes": 0}, "passes=0"),
        ({"configs_per_kernel": 0}, "configs_per_kernel=0"),
        ({"problems": ("x",)}, "long, odd"),
    ],
)
def test_a_wrong_request_is_refused(workload, cache, changes, words):
    with pytest.raises(UserError, match=words):
        request_for(workload, cache, **changes)


def test_the_sentinel_runs_with_one_thread_and_two(cpu):
    assert cpu.sentinel_us(1) > 0
    assert cpu.sentinel_us(2) > 0


# ---- death of the processes above ----

SUPERVISOR = """
import signal, sys
# a suite in the background ignores SIGINT, and hands that on
signal.signal(signal.SIGINT, signal.default_int_handler)
from costmodel import workloads
from costmodel.records import Kernel, Timing, Variant
import dataclasses
cpp = workloads.load_module(workloads.shipped("collectors") / "cpp_kernels.py")
work = workloads.load(sys.argv[1])
work = dataclasses.replace(work, kernel=Kernel("evil", "cpp", open(sys.argv[2]).read()))
with cpp.runner(workloads=[work], cache=__import__("pathlib").Path(sys.argv[3]), timeout_s=100.0) as cpu:
    print("ready", flush=True)
    cpu.measure([Variant(work.kernel, work.problems["odd"], work.default)])
"""


def descendants(root: int) -> set[int]:
    parents = {pid: parent for pid, (_, parent) in processes().items()}
    found = {root}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {root}


def wait_for(condition, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


# launcher, compiler and its sleep; or launcher, worker, its child and the child's child, which left the session
@pytest.mark.parametrize(("stage", "count"), [("compiling", 3), ("running", 4)])
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
def test_nothing_outlives_a_supervisor_that_is_killed_or_interrupted(
    workload, tmp_path, monkeypatch, stage, count, end
):
    source = tmp_path / "evil.cpp"
    source.write_text(evil_source("if (!fork()) { setsid(); sleep(1000); } sleep(1000);"))
    if stage == "compiling":
        monkeypatch.setenv("CXX", fake_compiler(tmp_path, "sleep 4; true"))
    command = [sys.executable, "-c", SUPERVISOR, str(workload.path), str(source), str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(Path(workloads.__file__).parents[1])}
    supervisor = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment)
    assert supervisor.stdout.readline() == b"ready\n"
    seen: set[int] = set()

    def all_started() -> bool:
        seen.update(descendants(supervisor.pid))
        return len(descendants(supervisor.pid)) == count

    wait_for(all_started)
    os.kill(supervisor.pid, end)
    supervisor.wait(20)
    supervisor.stdout.close()
    wait_for(lambda: not seen & set(processes()), 10.0)


def test_a_killed_worker_is_replaced(workload, cache):
    with cpp.runner(DEVICE, workloads=[workload], cache=cache, timing=QUICK) as cpu:
        assert cpu.measure([variant(workload)])[0].status == "ok"
        os.kill(cpu.worker.helper.process.pid, signal.SIGKILL)
        first, second = cpu.measure([variant(workload)] * 2)
    assert first.status == "crash"
    assert "SIGKILL" in first.error
    assert second.status == "ok"
