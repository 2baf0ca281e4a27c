"""What an NVIDIA GPU says of its clocks, heat and power: one call of nvidia-smi, no library."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

# The bits of the reasons under which the clock is held down against the driver's wish: power cap, hardware slowdown,
# thermal (software, hardware), power brake. Idle and clocks set by the user are none. Source: nvml.h.
THROTTLED = 0x4 | 0x8 | 0x20 | 0x40 | 0x80
REASONS = ("clocks_event_reasons.active", "clocks_throttle_reasons.active")  # the name since driver 535, and before
QUERY_S = 20.0


@dataclass(frozen=True, slots=True)
class GpuState:
    """At one moment."""

    sm_clock_mhz: float
    memory_clock_mhz: float
    temperature_c: float
    power_w: float
    throttled: bool

    @staticmethod
    def parse(line: str) -> GpuState:
        """Of "1980, 2619, 41, 118.27, 0x0000000000000001"; what a GPU does not state is NaN. ValueError else."""
        fields = [field.strip() for field in line.split(",")]
        if len(fields) != 5:
            raise ValueError(f"got {line!r}, expected five fields")
        clock, memory, heat, power = (_number(field) for field in fields[:4])
        return GpuState(clock, memory, heat, power, bool(int(fields[4], 16) & THROTTLED) if "0x" in line else False)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:  # [N/A], [Not Supported]
        return float("nan")


class StateReader:
    """Reads the state of the GPU of a UUID; None for ever after the first failure, whose reason is in `trouble`."""

    def __init__(self, uuid: str) -> None:
        self.uuid = uuid
        self.command = shutil.which("nvidia-smi")
        self.trouble = "" if self.command else "there is no nvidia-smi on the PATH"
        self.names = list(REASONS)

    def read(self) -> GpuState | None:
        while not self.trouble:
            fields = f"clocks.sm,clocks.mem,temperature.gpu,power.draw,{self.names[0]}"
            command = [str(self.command), f"--query-gpu={fields}", "--format=csv,noheader,nounits", "-i", self.uuid]
            try:
                done = subprocess.run(command, capture_output=True, text=True, timeout=QUERY_S)
                if done.returncode == 0:
                    return GpuState.parse(done.stdout.strip())
                said = (done.stdout + done.stderr).strip()
            except (OSError, subprocess.TimeoutExpired, ValueError) as error:
                said = str(error)
            del self.names[0]
            if not self.names:
                self.trouble = f"nvidia-smi does not state the GPU's clocks: {said[:200]}"
        return None


def counters(states: Sequence[GpuState]) -> tuple[tuple[str, float], ...]:
    """Of some moments together: the lowest clocks, the highest heat and power, "throttle" where it was so in any."""
    if not states:
        return ()
    values = {
        "sm_clock_mhz": min(state.sm_clock_mhz for state in states),
        "memory_clock_mhz": min(state.memory_clock_mhz for state in states),
        "temperature_c": max(state.temperature_c for state in states),
        "power_w": max(state.power_w for state in states),
    }
    stated = tuple((name, value) for name, value in values.items() if value == value)
    return (*stated, ("throttle", 1.0)) if any(state.throttled for state in states) else stated
