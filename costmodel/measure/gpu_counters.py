"""Hardware counters of one variant, by NVIDIA's profiler ncu where there is one and where it is permitted.

    ncu ... python -m costmodel.measure.gpu_counters FILE    where FILE holds a task, as JSON

The variant is run once more in a process of its own: the profiler runs each launch several times and empties the caches
before each, so its numbers are those of a cold start and its times are nobody's. Takes ten seconds and more a variant.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from costmodel.measure.gpu_protocol import GpuTask
from costmodel.measure.surroundings import environment_of
from costmodel.records import Device

PROFILE_S = 180.0
DURATION = "gpu__time_duration.sum"
BYTES = {"dram__bytes_read.sum": "dram_read_bytes", "dram__bytes_write.sum": "dram_write_bytes"}
SHARES = {
    "lts__t_sector_hit_rate.pct": "l2_hit_pct",
    "sm__warps_active.avg.pct_of_peak_sustained_active": "achieved_occupancy_pct",
    "sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_active": "tensor_pipe_pct",
}


class HardwareCounters:
    """Profiles variants on a device; nothing more after the first failure that is the machine's, see `trouble`."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.command = shutil.which("ncu")
        self.trouble = "" if self.command else "there is no ncu on the PATH"

    def of(self, task: GpuTask) -> tuple[tuple[str, float], ...]:
        """dram_read_bytes and dram_write_bytes of all launches together, and, weighted by the time of each, l2_hit_pct,
        achieved_occupancy_pct and tensor_pipe_pct. Empty where they cannot be had."""
        if self.trouble:
            return ()
        with tempfile.TemporaryDirectory() as folder:
            told, log = Path(folder, "task.json"), Path(folder, "log.csv")
            told.write_text(json.dumps({"task": task.encode(), "arch": self.device.arch}))
            command = [
                str(self.command), "--profile-from-start", "off", "--clock-control", "none", "--csv", "--print-units",
                "base", "--log-file", str(log), "--metrics", ",".join([DURATION, *BYTES, *SHARES]),
                sys.executable, "-P", "-m", __name__, str(told),
            ]  # fmt: skip
            interpreted = "1" if self.device.kind == "cpu" else "0"
            ended = _run(command, environment_of({"TRITON_INTERPRET": interpreted, "HOME": str(Path.home())}))
            text = log.read_text(errors="replace") if log.is_file() else ""
        if "ERR_NVGPUCTRPERM" in text:
            self.trouble = "ncu is not permitted to read the GPU's counters (ERR_NVGPUCTRPERM)"
        return totals(text.splitlines()) if ended else ()


def _run(command: list[str], environment: dict[str, str]) -> bool:
    """Whether it ended well and in time; nothing that it has started is left."""
    quiet: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, env=environment, start_new_session=True, **quiet)
    try:
        return process.wait(PROFILE_S) == 0
    except subprocess.TimeoutExpired:
        return False
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def totals(lines: Iterable[str]) -> tuple[tuple[str, float], ...]:
    """Counters from ncu's CSV, whose rows are one metric of one launch; lines without quotes are ncu's own words."""
    launches: dict[str, dict[str, float]] = defaultdict(dict)
    for row in csv.DictReader(line for line in lines if line.startswith('"')):
        try:
            launches[row["ID"]][row["Metric Name"]] = float(row["Metric Value"].replace(",", ""))
        except (KeyError, ValueError):  # "n/a", of a metric that this GPU does not have
            continue
    found: dict[str, float] = {}
    for metric, name in BYTES.items():
        values = [launch[metric] for launch in launches.values() if metric in launch]
        if values:
            found[name] = sum(values)
    for metric, name in SHARES.items():
        pairs = [(launch[metric], launch.get(DURATION, 1.0)) for launch in launches.values() if metric in launch]
        if weight := sum(duration for _, duration in pairs):
            found[name] = round(sum(value * duration for value, duration in pairs) / weight, 3)
    return tuple(found.items())


def main() -> None:
    """Under ncu: prepare, build, call once, and once more with the profiler watching."""
    from costmodel.measure.gpu_worker import open_session

    told = json.loads(Path(sys.argv[1]).read_text())
    session, uuid = open_session({"arch": told["arch"], "flush_bytes": 0})
    session.task = GpuTask.decode(told["task"])
    session.prepare()
    session.build()
    session.call()
    session.stream.wait()
    if uuid:
        import torch

        torch.cuda.profiler.start()
    session.call()
    session.stream.wait()
    if uuid:
        torch.cuda.profiler.stop()


if __name__ == "__main__":
    main()
