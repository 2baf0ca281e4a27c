"""Kernels' answers, taken in a process of their own: how such a process is asked, and how an answer is judged."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@contextmanager
def asked(script: str) -> Iterator[Callable[[dict], dict]]:
    """A script of this folder that reads requests as JSON lines and writes an answer for each."""
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name(script))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    def ask(request: dict) -> dict:
        process.stdin.write(json.dumps(request) + "\n")
        process.stdin.flush()
        return json.loads(process.stdout.readline())

    yield ask
    process.stdin.close()
    process.wait()


def error(got: torch.Tensor, expected: torch.Tensor) -> float:
    """max |got - expected| over the largest |expected|; inf where an integer or a NaN differs."""
    assert got.shape == expected.shape, f"got {tuple(got.shape)}, expected {tuple(expected.shape)}"
    assert got.dtype == expected.dtype, f"got {got.dtype}, expected {expected.dtype}"
    if not got.is_floating_point():
        return 0.0 if bool((got == expected).all()) else float("inf")
    got, expected = got.double(), expected.double()
    worst = (got - expected).abs().max() / expected.abs().max().clamp_min(1e-30)
    return float("inf") if worst.isnan() else float(worst)
