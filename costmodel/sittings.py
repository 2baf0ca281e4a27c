"""One thing measured several times: what makes two rows sittings of one thing, and what they say together."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence

from costmodel import dataset
from costmodel.records import Device, Measurement, Timing, Variant, digest


def identity(variant: Variant, device: Device, timing: Timing, toolchain: tuple[tuple[str, str], ...]) -> str:
    """What two rows must share to be sittings of one thing. The kernel counts by its text, not by its name."""
    return digest(
        dataset.kernel_identity(variant.kernel),
        dataset.noun_json(variant.problem),
        dataset.to_json(variant.config.params),
        dataset.noun_json(device),
        dataset.to_json(toolchain),
        dataset.noun_json(timing),
    )


def joined(sittings: Sequence[Measurement]) -> Measurement:
    """The sittings of one identity as one measurement.

    One wrong result condemns a variant. Otherwise the sittings vote, a tie going to failure; if they agree on ok, the
    samples of all ok sittings are pooled in order of time, those in which the machine drifted only where there is no
    other, and counters are medians. What was only compiled adds its counters to what was run.
    """
    sittings = sorted(sittings, key=lambda sitting: sitting.collected_at)
    compiled = [sitting for sitting in sittings if sitting.status == "compiled"]
    sittings = [sitting for sitting in sittings if sitting.status != "compiled"]
    if not sittings:
        return compiled[-1]
    wrong = [sitting for sitting in sittings if sitting.status == "wrong_result"]
    fine = [sitting for sitting in sittings if sitting.status == "ok"]
    failed = [sitting for sitting in sittings if sitting.status != "ok"]
    if wrong:
        return wrong[-1]
    if len(failed) >= len(fine):
        return failed[-1]
    fine = [sitting for sitting in fine if "drift" not in dict(sitting.counters)] or fine
    last = fine[-1]
    counters: dict[str, list[float]] = defaultdict(list)
    for sitting in fine + compiled[-1:]:
        for name, value in sitting.counters:
            counters[name].append(value)
    return Measurement(
        variant=last.variant,
        device=last.device,
        timing=last.timing,
        toolchain=last.toolchain,
        status="ok",
        samples_us=tuple(sample for sitting in fine for sample in sitting.samples_us),
        counters=tuple((name, statistics.median(values)) for name, values in counters.items()),
        collected_at=last.collected_at,
    )


def combine(measurements: Iterable[Measurement]) -> list[Measurement]:
    """One measurement per identity, in order of first appearance."""
    found: dict[str, list[Measurement]] = {}
    for m in measurements:
        found.setdefault(identity(m.variant, m.device, m.timing, m.toolchain), []).append(m)
    return [joined(sittings) for sittings in found.values()]


def measured(measurements: Iterable[Measurement]) -> list[Measurement]:
    """Without what was only compiled, which has no latency and yet is no failure."""
    return [m for m in measurements if m.status != "compiled"]
