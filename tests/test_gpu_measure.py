"""How a number is taken on a GPU, on a CPU: simulated devices for the timing, failing ones for the worker."""

import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from costmodel import devices, workloads
from costmodel.measure import arrays, channel, gpu_cubins, gpu_data, gpu_isolation, gpu_state, gpu_timing, gpu_worker
from costmodel.measure.gpu_protocol import GpuTask, one_line
from costmodel.measure.gpu_timing import Sampler
from costmodel.measure.protocol import Outcome
from costmodel.records import Config, Kernel, Launch, Problem, SearchSpace, TensorSpec, Timing, Workload

QUICK = Timing(warmup_us=0.0, min_samples=3, relative_error=0.9)
COLD = Timing(cache="cold", warmup_us=0.0, min_samples=3, relative_error=0.9)


# ---- the timing, on a device that is simulated ----


class Simulated:
    """A host and a device with a clock each: what is queued runs in order, not before the host has queued it."""

    def __init__(self, kernel_us=3.0, host_us=(50.0,), *, idles=True):
        self.now_us = self.free_us = 0.0
        self.kernel_us, self.host_us, self.idles = kernel_us, list(host_us), idles
        self.calls = self.flushed = 0

    def run(self, us: float) -> None:
        self.free_us = max(self.free_us, self.now_us) + us

    def idle(self, us: float) -> None:
        self.run(us if self.idles else 0.0)

    def call(self) -> None:
        self.now_us += self.host_us[self.calls % len(self.host_us)]
        self.calls += 1
        self.run(self.kernel_us)

    def flush(self) -> None:
        self.flushed += 1
        self.run(40.0)

    def mark(self):
        at_us = max(self.free_us, self.now_us)
        return SimpleNamespace(
            at_us=at_us, passed=lambda: self.now_us >= at_us, us_since=lambda earlier: at_us - earlier.at_us
        )

    def wait(self) -> None:
        self.now_us = max(self.now_us, self.free_us)

    def take(self, timing: Timing):
        sampler = Sampler(self, self.flush, clock_ns=lambda: round(self.now_us * 1e3))
        return sampler.take(self.call, timing)


@given(
    kernel_us=st.floats(1.0, 5e4),
    host_us=st.lists(st.floats(1.0, 3e3), min_size=1, max_size=40),
    cache=st.sampled_from(["warm", "cold"]),
)
@settings(max_examples=60, deadline=None)
def test_no_sample_holds_the_time_the_host_takes_to_launch(kernel_us, host_us, cache):
    device = Simulated(kernel_us, host_us)
    samples, starved = device.take(Timing(cache=cache))
    assert not starved
    assert samples == pytest.approx([kernel_us] * len(samples), rel=1e-6)
    assert len(samples) >= 3
    assert (device.flushed > 0) is (cache == "cold")


def test_a_stream_that_starves_is_told():
    """Without the idling ahead, each sample of a short kernel is the time that the host takes to launch it."""
    samples, starved = Simulated(kernel_us=3.0, host_us=[50.0], idles=False).take(Timing())
    assert starved
    assert min(samples) > 40.0


def test_slow_kernels_are_called_few_times():
    device = Simulated(kernel_us=500_000.0)
    samples, starved = device.take(Timing())
    assert len(samples) == 3
    assert device.calls == 4
    assert not starved


class SimulatedCuda(Simulated):
    """The part of torch.cuda that times, with a clock of 1755 MHz."""

    def _sleep(self, cycles: int) -> None:
        self.idle(cycles / 1755.0)

    def Event(self, *, enable_timing: bool):
        assert enable_timing
        event = SimpleNamespace(mark=None)
        event.record = lambda: setattr(event, "mark", self.mark())
        event.query = lambda: event.mark.passed()
        event.elapsed_time = lambda later: later.mark.us_since(event.mark) / 1e3
        return event

    def synchronize(self) -> None:
        self.wait()


def test_a_cuda_stream_idles_as_long_as_it_is_told(monkeypatch):
    device = SimulatedCuda(kernel_us=3.0, host_us=[50.0])
    monkeypatch.setattr(torch, "cuda", device)
    stream = gpu_timing.CudaStream()
    assert stream.cycles_per_us == pytest.approx(1755.0, rel=1e-3)
    samples, starved = Sampler(stream, device.flush, clock_ns=lambda: round(device.now_us * 1e3)).take(
        device.call, COLD
    )
    assert samples == pytest.approx([3.0] * len(samples))
    assert not starved


# ---- what is right ----


def both(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array.copy())


@given(
    values=st.lists(st.floats(width=32), min_size=1, max_size=60),
    where=st.integers(0, 59),
    other=st.floats(width=32),
    tolerance=st.floats(0.0, 0.5),
)
@settings(max_examples=100, deadline=None)
def test_results_are_judged_as_those_of_the_cpu_are(values, where, other, tolerance):
    expected = np.array(values, np.float32)
    got = expected.copy()
    got[where % len(got)] = other
    with np.errstate(all="ignore"):
        theirs = arrays.mismatch(got, expected, tolerance)
    ours = gpu_data.mismatch(both(got), both(expected), tolerance)
    assert (ours == "") == (theirs == ""), (ours, theirs)


def test_results_larger_than_a_piece_are_judged_throughout(monkeypatch):
    monkeypatch.setattr(gpu_data, "PIECE", 100)
    for dtype in (torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.int32, torch.bool):
        expected = torch.ones(1003).to(dtype)
        for at in (0, 99, 100, 777, 1002):
            got = expected.clone()
            got.view(torch.uint8).reshape(1003, -1)[at] = 0
            error = gpu_data.mismatch(got, expected, 0.5)
            assert "largest error 1" in error if dtype.is_floating_point else f"first at index {at}" in error
        assert gpu_data.mismatch(expected.clone(), expected, 0.0) == ""
    expected = torch.ones(1003)
    got = expected.clone()
    got[777] = float("nan")
    assert gpu_data.mismatch(got, expected, 1.0) == "got nan, expected 1 at index 777"


@given(size=st.integers(1, 700), at=st.integers(0, 699), bit=st.integers(0, 7), kind=st.sampled_from(["u8", "i16"]))
@settings(max_examples=60, deadline=None)
def test_a_checksum_sees_one_bit_and_the_order(size, at, bit, kind):
    dtype = {"u8": torch.uint8, "i16": torch.int16}[kind]
    x = torch.randint(0, 100, (size,), generator=torch.Generator().manual_seed(size)).to(dtype)
    before = gpu_data.checksum(x)
    assert gpu_data.checksum(x.clone()) == before
    flipped = x.clone()
    flipped.view(torch.uint8)[at % (size * dtype.itemsize)] ^= 1 << bit
    assert gpu_data.checksum(flipped) != before
    if not torch.equal(x.flip(0), x):
        assert gpu_data.checksum(x.flip(0)) != before


def test_a_checksum_takes_any_layout():
    x = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    assert gpu_data.checksum(x.T) == gpu_data.checksum(x.T.contiguous()) != gpu_data.checksum(x)
    assert gpu_data.checksum(x[1:]) == gpu_data.checksum(x[1:].clone())
    assert gpu_data.checksum(torch.tensor(3.0)) != gpu_data.checksum(torch.tensor(4.0))
    assert gpu_data.checksum(torch.empty(0)) == gpu_data.checksum(torch.empty(0))


@pytest.mark.parametrize("dtype", ["f64", "f32", "f16", "bf16", "f8_e4m3", "f8_e5m2", "i64", "i8", "bool"])
def test_outputs_are_spoiled_and_guarded(dtype):
    output = gpu_data.Output(TensorSpec((3, 5), dtype), torch.device("cpu"))
    output.spoil(0xA5)
    assert not output.overrun()
    if output.tensor.is_floating_point():
        assert output.tensor.double().isnan().all()
    assert output.tensor.data_ptr() % 16 == 0
    size = output.tensor.numel() * output.tensor.element_size()
    for at in (-1, size):
        whole = torch.as_strided(output.body, (size + 2,), (1,), output.body.storage_offset() - 1)
        kept = int(whole[at + 1])
        whole[at + 1] = 1
        assert output.overrun()
        whole[at + 1] = kept
        assert not output.overrun()


# ---- the GPU's state ----


def test_the_state_of_a_gpu_is_read_under_its_newer_and_its_older_names(tmp_path, monkeypatch):
    smi = tmp_path / "nvidia-smi"
    smi.write_text(
        "#!/bin/sh\ncase \"$*\" in *clocks_event_reasons*) echo 'Field is not a valid field to query.'; exit 2;; esac\n"
        "case \"$*\" in *'-i GPU-7'*) echo '1980, 2619, [N/A], 118.27, 0x0000000000000005';; *) exit 6;; esac\n"
    )
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    reader = gpu_state.StateReader("GPU-7")
    for _ in range(2):
        state = reader.read()
        assert (state.sm_clock_mhz, state.memory_clock_mhz, state.power_w) == (1980, 2619, 118.27)
        assert state.throttled
    later = gpu_state.GpuState.parse("1755, 2619, 43, 90.5, 0x0000000000000001")
    assert dict(gpu_state.counters([state, later])) == {
        "sm_clock_mhz": 1755.0, "memory_clock_mhz": 2619.0, "power_w": 118.27, "throttle": 1.0,
    }  # fmt: skip
    assert "throttle" not in dict(gpu_state.counters([later]))
    other = gpu_state.StateReader("GPU-8")
    assert other.read() is None
    assert "nvidia-smi does not state" in other.trouble
    monkeypatch.setenv("PATH", "")
    assert gpu_state.StateReader("GPU-7").read() is None


# ---- the worker's way with a device that fails, and the supervisor's with a worker that does ----


class Entry:
    """Stands for a jit function: adds one to its input, after what it is told to do first."""

    def __init__(self, *, preparing=lambda: None, building=lambda: None, running=lambda: None):
        self.preparing, self.building, self.running = preparing, building, running

    def warmup(self, *args, grid, **keywords):
        self.building()

    def __getitem__(self, grid):
        def start(x, y):
            self.running()
            torch.add(x, 1.0, out=y)

        return start


class Device:
    """A stream that fails for ever once it has failed."""

    def __init__(self):
        self.fault = ""

    def idle(self, us):
        pass

    def mark(self):
        return gpu_timing.HostMark()

    def wait(self):
        if self.fault:
            raise RuntimeError(f"CUDA error: {self.fault}\nfor debugging consider a prayer")


SPEC = TensorSpec((64,), "f32")


def plus_one(entry: Entry) -> Workload:
    problem = Problem("plus_one", (SPEC,), (("N", 64),), 64, 512)

    def make_inputs(problem, seed):
        entry.preparing()
        return (torch.arange(64.0),)

    return Workload(
        kernel=Kernel("plus_one", "triton", "def plus_one(): ..."),
        space=SearchSpace.of(BLOCK=(64,)),
        default=Config.of(BLOCK=64),
        problems={"only": problem},
        make_problem=lambda N: problem,
        make_inputs=make_inputs,
        reference=lambda problem, inputs: (inputs[0] + 1,),
        launch=lambda problem, config, inputs, outputs: [Launch(entry, (1,), (inputs[0], outputs[0]))],
        outputs=lambda problem: (SPEC,),
    )


def attempt(entry: Entry, device: Device, monkeypatch) -> list[dict]:
    """The outcomes of a variant in a session of its own."""
    workload = plus_one(entry)
    monkeypatch.setattr(workloads, "load", lambda path, **_: workload)
    session = gpu_worker.Session(torch.device("cpu"), device, arch="sm_90", flush_bytes=64, shelf_bytes=1 << 20)
    task = GpuTask("f.py", workload.kernel.identity, (("N", 64),), workload.default.params, (QUICK, COLD), 0)
    answer = session.serve({"stage": "prepare", "task": task.encode()})
    for stage in ("build", "run"):
        answer = answer or session.serve({"stage": stage})
    return answer["outcomes"]


def test_memory_that_runs_out_once_is_found_on_the_shelf(monkeypatch):
    full = iter([True, False, True, False])

    def allocate():
        if next(full, False):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    outcomes = attempt(Entry(building=allocate, running=allocate), Device(), monkeypatch)
    assert [o["status"] for o in outcomes] == ["ok", "ok"]
    full = iter([True, True])
    outcomes = attempt(Entry(running=allocate), Device(), monkeypatch)
    assert [o["status"] for o in outcomes] == ["launch_error"] * 2
    assert outcomes[0]["error"] == "OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB"


def test_what_is_refused_to_be_launched_is_told_from_what_does_not_compile(monkeypatch):
    refused = type("OutOfResources", (Exception,), {})("out of resource: shared memory")
    for error, status in ((refused, "launch_error"), (SyntaxError("no"), "compile_error")):

        def fail(error=error):
            raise error

        assert {o["status"] for o in attempt(Entry(building=fail), Device(), monkeypatch)} == {status}
    assert {o["status"] for o in attempt(Entry(running=fail), Device(), monkeypatch)} == {"launch_error"}


@pytest.mark.parametrize("where", ["preparing", "building", "running"])
@pytest.mark.parametrize("raises", [False, True])
def test_a_fault_of_the_device_ends_the_session(where, raises, monkeypatch):
    """Whether it shows in the call that made it, or only when the device is waited for."""
    device = Device()

    def fault():
        device.fault = "an illegal memory access was encountered"
        if raises:
            device.wait()

    with pytest.raises(gpu_worker.Faulted, match=r"^RuntimeError: CUDA error: an illegal memory access was encounter"):
        attempt(Entry(**{where: fault}), device, monkeypatch)


def test_a_worker_that_ends_is_replaced_and_its_successor_is_not_blamed(monkeypatch):
    ok = {"outcomes": [Outcome("ok", (1.0,)).encode()]}
    crash = {"outcomes": [Outcome("crash", error="illegal memory access").encode()], "ends": True}
    dead = channel.Closed("gone")
    script = [  # of what each worker answers after its hello
        [{}, {}, ok, {}, {}, crash],  # good, then a fault
        [{}, {}, ok, dead],  # good, then it dies before the next variant has begun
        [{}, {}, ok, {}, dead],  # which is run here; the one after dies in its build
        [dead],  # a fresh one that dies on prepare
        [{}, channel.Late("late")],
    ]
    workers = iter(script)

    class Scripted:
        def __init__(self, module, environment, passed=()):
            self.answers = iter([{"uuid": "GPU-1"}, *next(workers)])

        def ask(self, message, *, timeout_s):
            answer = next(self.answers)
            if isinstance(answer, Exception):
                raise answer
            return answer

        def close(self):
            return "signal SIGKILL"

    monkeypatch.setattr(gpu_isolation, "Helper", Scripted)
    isolated = gpu_isolation.GpuIsolated(devices.find("H200"), timeout_s=1.0, compile_timeout_s=2.0)
    task = GpuTask("f.py", "identity", (), (), (QUICK,), 0)
    taken = [isolated.run(task)[0] for _ in range(7)]
    assert [o.status for o in taken] == ["ok", "crash", "ok", "ok", "crash", "crash", "timeout"]
    assert taken[-1].error == "compiling took over 2 s"
    assert "SIGKILL" in taken[-2].error
    assert next(workers, None) is None


# ---- cubins on disk ----


def test_a_config_is_compiled_once_for_all_processes(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    compiled = []

    def compile_cuda(source, config, arch):
        compiled.append((source, config, arch))
        return f"{source} {config} {arch}".encode()

    monkeypatch.setattr(gpu_cubins, "compile_cuda", compile_cuda)
    monkeypatch.setattr(gpu_cubins, "nvrtc_version", lambda: "1.0")
    asked = [("s", Config.of(A=1), "sm_90"), ("s", Config.of(A=2), "sm_90"), ("s", Config.of(A=1), "sm_80")]
    for _ in range(2):
        assert [gpu_cubins.cubin_of(*one)[0] for one in asked] == [b"s A=1 sm_90", b"s A=2 sm_90", b"s A=1 sm_80"]
    assert compiled == asked
    assert gpu_cubins.cubin_of(*asked[0])[1] is None
    assert gpu_cubins.cubin_of(*asked[0], fresh=True)[1] >= 0
    monkeypatch.setattr(gpu_cubins, "nvrtc_version", lambda: "2.0")
    gpu_cubins.cubin_of(*asked[0])
    assert len(compiled) == 5
    assert not list(tmp_path.rglob("*.part"))


# ---- messages ----


def test_a_task_survives_the_wire():
    task = GpuTask("k.py", "identity", (("N", 8),), (("BLOCK", 16), ("FAST", True)), (QUICK, COLD), 7)
    assert GpuTask.decode(channel.unpack(channel.pack(task.encode()))) == task


def test_a_reason_is_one_line():
    assert one_line(ValueError("\n  first thing\nsecond")) == "ValueError: first thing"
    assert one_line(KeyError()) == "KeyError"
    assert one_line("x" * 900) == "x" * 400
