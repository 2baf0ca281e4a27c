"""How near a kernel is to what a model was trained on, and so whether its prediction deserves trust.

A text is its set of 4-grams of lexical tokens. The training texts together are kept as a sample of the hashes of those
4-grams, the smallest ones (a bottom-k sketch; Broder 1997), so the share of a new text that was seen can be estimated.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from costmodel.records import Device, Kernel, Measurement, Problem
from costmodel.serialize import canonical_source

SKETCH_SIZE = 6000
TRUSTED_SHARE = 0.6  # a guess so far; see docs/lab-notes.md
RANGE_MARGIN = 4.0  # how far outside the trained range of flops and bytes a problem may lie


@dataclass(frozen=True)
class Familiarity:
    """What a model has read: a sample of 4-gram hashes below `threshold`, kernels, devices and problem sizes."""

    hashes: frozenset[int]
    threshold: int
    kernels: frozenset[str]
    devices: frozenset[str]
    ranges: dict[str, dict[str, tuple[int, int]]]  # by language: least and most "flops" and "bytes"

    @staticmethod
    def of(measurements: Iterable[Measurement]) -> Familiarity:
        measurements = list(measurements)
        kernels = {m.variant.kernel for m in measurements}
        problems = {(m.variant.kernel.language, m.variant.problem) for m in measurements}
        distinct = sorted({h for kernel in kernels for h in _hashes(kernel)})
        kept = distinct[:SKETCH_SIZE]
        return Familiarity(
            hashes=frozenset(kept),
            threshold=2**32 if len(kept) == len(distinct) else kept[-1] + 1,
            kernels=frozenset(kernel.identity for kernel in kernels),
            devices=frozenset(m.device.name for m in measurements),
            ranges={
                language: {
                    "flops": _range(p.flops for one, p in problems if one == language),
                    "bytes": _range(p.bytes for one, p in problems if one == language),
                }
                for language in sorted({language for language, _ in problems})
            },
        )

    def seen_share(self, kernel: Kernel) -> float:
        """Estimated share of the text's 4-grams that occur in a training text."""
        sampled = [h for h in _hashes(kernel) if h < self.threshold]
        return sum(h in self.hashes for h in sampled) / len(sampled) if sampled else 0.0

    def measured(self, kernel: Kernel, device: Device) -> bool:
        """Whether the model was trained on this source and on this device; then its predictions there prove nothing."""
        return kernel.identity in self.kernels and device.name in self.devices

    def judge(self, kernel: Kernel, problem: Problem, device: Device) -> tuple[bool, str]:
        """(trust, reason in words)."""
        share = self.seen_share(kernel)
        if kernel.identity in self.kernels:
            known, reason = True, "this source was in training"
        else:
            known = share >= TRUSTED_SHARE
            reason = f"{'' if known else 'only '}{share:.0%} of this source's text patterns were in training"
        problems = []
        for what, (low, high) in self.ranges.get(kernel.language, {}).items():
            value = getattr(problem, what)
            if not low / RANGE_MARGIN <= value <= high * RANGE_MARGIN:
                problems.append(f"{what} {value:.2g} lie outside the trained {low:.2g} to {high:.2g}")
        if device.name not in self.devices:
            problems.append(f"no training data from {device.name}, so only the order means something")
        return known and not problems, "; ".join([reason, *problems])

    def as_json(self) -> dict[str, Any]:
        return {
            "hashes": sorted(self.hashes),
            "threshold": self.threshold,
            "kernels": sorted(self.kernels),
            "devices": sorted(self.devices),
            "ranges": self.ranges,
        }

    @staticmethod
    def from_json(document: dict[str, Any]) -> Familiarity:
        return Familiarity(
            hashes=frozenset(document["hashes"]),
            threshold=document["threshold"],
            kernels=frozenset(document["kernels"]),
            devices=frozenset(document["devices"]),
            ranges={
                language: {what: (low, high) for what, (low, high) in bounds.items()}
                for language, bounds in document["ranges"].items()
            },
        )


def _range(values: Iterable[int]) -> tuple[int, int]:
    known = list(values)
    return min(known), max(known)


def _hashes(kernel: Kernel) -> set[int]:
    tokens = re.findall(r"\w+|[^\w\s]", canonical_source(kernel))
    return {zlib.crc32(" ".join(tokens[i : i + 4]).encode()) for i in range(max(len(tokens) - 3, 1))}
