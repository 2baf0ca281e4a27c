"""Triton's and CUDA's kernels on a GPU: pytest -m gpu tests/gpu"""

import statistics

import pytest
import torch
from test_gpu_running import DEFINITION, survives_kill_9

from costmodel import devices, workloads
from costmodel.measure.gpu_running import COLD, WARM
from costmodel.records import Config, Variant, Workload

triton = pytest.importorskip("triton")
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

collector = workloads.load_module(workloads.shipped("collectors") / "triton_kernels.py")
NAMES = workloads.names("triton")


def default_of(workload: Workload) -> Variant:
    """The default config on the first listed problem where it is valid."""
    gpu = devices.detect("cuda")
    valid = (p for p in workload.problems.values() if workload.space.is_valid(workload.default, p, gpu))
    problem = next(valid, None)
    if problem is None:
        pytest.skip(f"{workload.kernel.name} has no problem for {gpu.name}")
    return Variant(workload.kernel, problem, workload.default)


@pytest.fixture(scope="module")
def shipped():
    return {name: workloads.load(f"triton/{name}") for name in NAMES}


@pytest.fixture(scope="module")
def runner(shipped):
    with collector.runner(workloads=list(shipped.values())) as runner:
        yield runner


@pytest.mark.parametrize("name", NAMES)
def test_every_default_agrees_with_its_reference(runner, shipped, name):
    (taken,) = runner.measure([default_of(shipped[name])])
    assert taken.status == "ok", taken.error
    assert "starved" not in dict(taken.counters)
    assert dict(taken.counters)["registers"] > 0


@pytest.fixture(scope="module")
def affine(tmp_path_factory):
    """The kernel of test_gpu_running that misbehaves on demand."""
    path = tmp_path_factory.mktemp("kernels") / "affine.py"
    path.write_text(DEFINITION)
    return workloads.load(path)


def deed(workload: Workload, name: str, *, n: int = 200) -> Variant:
    return Variant(workload.kernel, workload.make_problem(N=n), Config.of(BLOCK=32, DEED=name))


def test_faults_hangs_and_aborts_are_survived(affine):
    wanted = {
        "far_away": "crash", "none": "ok", "hang": "timeout", "abort": "compile_error", "wrong": "wrong_result",
        "wrong_later": "wrong_result", "incomplete": "wrong_result", "input": "wrong_result",
        "past_the_end": "wrong_result", "before_the_start": "wrong_result", "exception": "compile_error",
        "no_launch": "compile_error",
    }  # fmt: skip  # the launches are made to compile them, so what fails there has no other name
    with collector.runner(workloads=[affine], timeout_s=5.0) as runner:
        taken = runner.measure([v for name in wanted for v in (deed(affine, name), deed(affine, "none"))])
    assert {name: m.status for name, m in zip(wanted, taken[::2], strict=True)} == wanted, [m.error for m in taken]
    assert {(m.status, m.error) for m in taken[1::2]} == {("ok", "")}
    assert "illegal memory access" in taken[0].error


def test_too_much_shared_memory_is_not_launched(runner, shipped):
    """What the compiler's facts say is infeasible, Triton refuses to load."""
    workload = shipped["matmul"]
    problem = next(iter(workload.problems.values()))
    greedy = {"BLOCK_M": 128, "BLOCK_N": 256, "BLOCK_K": 128, "num_stages": 4, "num_warps": 8}
    config = Config.of(**{**workload.default.as_dict(), **greedy})
    (taken,) = runner.measure([Variant(workload.kernel, problem, config)])
    assert taken.status == "compiled"
    assert "shared memory" in taken.error


def test_a_killed_collection_resumes(affine, tmp_path):
    survives_kill_9(affine, tmp_path, "cuda")


def softmax(shipped, *, rows: int) -> Variant:
    workload = shipped["softmax"]
    return Variant(workload.kernel, workload.make_problem(rows=rows, columns=1024, dtype="f16"), workload.default)


def test_cold_is_slower_than_warm_where_the_cache_holds_everything(runner, shipped):
    small = softmax(shipped, rows=2048)  # 8 MB read and written
    warm, cold = runner.sit([(small, WARM), (small, COLD)])
    assert (warm.status, cold.status) == ("ok", "ok")
    assert cold.latency_us > 1.05 * warm.latency_us


def test_times_are_those_of_tritons_own_benchmark(runner, shipped):
    """do_bench flushes the cache too. 128 MB a call, so that what the host takes to launch is hidden in both."""
    large = softmax(shipped, rows=32768)
    (cold,) = runner.sit([(large, COLD)])
    workload, device = shipped["softmax"], torch.device("cuda")
    with device:
        inputs = workload.make_inputs(large.problem, 0)
    (launch,) = workload.launch(large.problem, large.config, inputs, (torch.empty_like(inputs[0]),))
    theirs_us = triton.testing.do_bench(
        lambda: launch.entry[launch.grid](*launch.args, **launch.keywords), return_mode="median"
    ) * 1e3  # fmt: skip
    assert 0.7 < cold.latency_us / theirs_us < 1.4


def test_a_short_kernel_is_not_timed_with_its_launch(runner, shipped):
    """Triton's launcher takes tens of microseconds in Python, the smallest softmax a few on the device."""
    (warm,) = runner.sit([(softmax(shipped, rows=4), WARM)])
    assert statistics.median(warm.samples_us) < 15.0


def test_a_collection_says_at_which_clocks(affine):
    request = collector.CollectRequest(workloads=(affine,), problems=("long",), passes=1)
    taken = list(collector.collect(request))
    assert {m.timing.cache for m in taken} == {"warm", "cold"}
    assert {m.status for m in taken} == {"ok"}
    for measurement in taken:
        assert dict(measurement.counters)["sm_clock_mhz"] > 100
