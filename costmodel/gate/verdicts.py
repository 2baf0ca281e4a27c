"""The measured tier: has this change slowed a test down? Pure functions; who runs the tests is passed in.

Base and head run as pairs of processes that take turns, in random order, one number a process: a low quantile of its
samples, which neither luck nor preemption decides (`costmodel.measure.side`). The log ratios of a test's pairs go into
an exact sign-flip test on signed ranks, with Holm's correction over the tests; alpha is shared out over the looks at
the data, so that pairs may be added while a test is undecided.

A test has regressed where the slow-down is significant and its estimate exceeds the threshold. So a false alarm needs
noise that fools the test and that is as large as the threshold; a true slow-down just below the threshold may be told
as one just above it.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np

from costmodel import stats
from costmodel.measure.pairs import NOT_THERE, Record
from costmodel.notebook import shown
from costmodel.records import UserError

Verdict = Literal["regressed", "ok", "inconclusive", "not comparable"]
Pair = tuple[float, float]  # microseconds of base and head


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found of one test, or of one kernel on one problem.

    slowdown: of head over base, 0.1 is 10 % slower; low and high: its bounds (measured: at the level of the look that
    decided; predicted: 5 and 95 %). p: corrected for tests and looks. probability: that the slow-down exceeds the
    threshold. path and line: where the change is, for annotations.
    """

    name: str
    verdict: Verdict
    threshold: float
    slowdown: float = math.nan
    low: float = math.nan
    high: float = math.nan
    p: float | None = None
    probability: float | None = None
    pairs: tuple[Pair, ...] = ()
    reason: str = ""
    path: str = ""
    line: int = 0

    @property
    def evidence(self) -> str:
        if self.probability is not None:
            return f"{self.probability:.0%} likely"
        return f"p {self.p:.2g}, {len(self.pairs)} pairs" if self.p is not None else ""

    @property
    def sentence(self) -> str:
        """For a failure's message and an annotation."""
        if not math.isfinite(self.slowdown):
            return f"{self.verdict}: {self.reason}"
        told = "predicted" if self.probability is not None else "measured"
        size = f"{abs(self.slowdown):.1%} {'slower' if self.slowdown >= 0 else 'faster'}"
        why = f"; {self.reason}" if self.reason else ""
        return f"{self.verdict}: {told} {size} than base, threshold {100 * self.threshold:.3g}% ({self.evidence}){why}"

    def _repr_html_(self) -> str:
        """For a notebook."""
        found = {"verdict": self.verdict, "found": self.sentence.removeprefix(f"{self.verdict}: ")}
        if math.isfinite(self.slowdown):
            found["bounds"] = f"{self.low:+.1%} to {self.high:+.1%}"
        if self.pairs:
            found["pairs"] = ", ".join(f"{head / base - 1:+.1%}" for base, head in self.pairs)
        return shown(self.name, found)


@dataclass(frozen=True, slots=True)
class Rule:
    """When the measured tier decides: after `pairs` pairs, and again after as many more, up to `max_pairs`."""

    threshold: float = 0.05
    alpha: float = 0.05
    pairs: int = 6
    max_pairs: int = 18

    def __post_init__(self) -> None:
        if not 0 <= self.threshold < 10:
            raise UserError(f"got threshold {self.threshold}, expected a share such as 5% or 0.05")
        if not 0 < self.alpha < 1:
            raise UserError(f"got alpha {self.alpha}, expected a share between 0 and 1, such as 0.05")
        if not 1 <= self.pairs <= self.max_pairs <= stats.EXACT_PAIRS:
            raise UserError(
                f"got {self.pairs} pairs and at most {self.max_pairs}, expected 1 <= pairs <= max-pairs <= "
                f"{stats.EXACT_PAIRS}"
            )

    @property
    def looks(self) -> tuple[int, ...]:
        return (*range(self.pairs, self.max_pairs, self.pairs), self.max_pairs)

    def check_power(self, tests: int) -> None:
        """UserError where even the clearest slow-down could not be told: n pairs give no p-value below 2^-n."""
        if tests and 2.0**-self.max_pairs > self.alpha / len(self.looks) / tests:
            raise UserError(
                f"got {self.max_pairs} pairs at most for {tests} tests, too few to reach alpha {self.alpha:g}; "
                f"raise --costmodel-max-pairs"
            )


def share(text: str) -> float:
    """ "5%" and "0.05" -> 0.05"""
    number, percent, rest = text.strip().partition("%")
    try:
        value = float(number) / (100 if percent else 1)
    except ValueError:
        value = math.nan
    if rest or not math.isfinite(value):
        raise UserError(f"got {text!r}, expected a share such as 5% or 0.05")
    return value


def judge(
    pairs: Mapping[str, Sequence[Pair]], rule: Rule, thresholds: Mapping[str, float] | None = None
) -> dict[str, Finding]:
    """Findings of the pairs so far. It replays every look from the first pair on, so the data alone decide.

    The chance of any false alarm is at most alpha: each look may spend alpha / looks, by Holm over the tests that have
    not regressed yet (those found ok among them, with p = 1).
    """
    found = {
        name: Finding(name, "inconclusive", _threshold(name, rule, thresholds), pairs=tuple(taken), reason="too few")
        for name, taken in pairs.items()
    }
    waiting, regressed = list(pairs), 0
    for look in rule.looks:
        ready = [name for name in waiting if len(pairs[name]) >= look]
        if not ready:
            break
        logs = {name: np.log([head / base for base, head in pairs[name][:look]]) for name in ready}
        p_values = [stats.sign_flip_p(stats.signed_ranks(logs[name]), alternative="greater") for name in ready]
        elsewhere = len(pairs) - regressed - len(ready)
        corrected = stats.holm([*p_values, *[1.0] * elsewhere])[: len(ready)] * len(rule.looks)
        for name, p in zip(ready, corrected, strict=True):
            taken = tuple(pairs[name][:look])
            found[name] = _measured(name, taken, logs[name], min(1.0, float(p)), rule, found[name].threshold)
        decided = [name for name in ready if found[name].verdict != "inconclusive"]
        regressed += sum(found[name].verdict == "regressed" for name in decided)
        waiting = [name for name in waiting if name not in decided]
    return found


def _threshold(name: str, rule: Rule, thresholds: Mapping[str, float] | None) -> float:
    return (thresholds or {}).get(name, rule.threshold)


def _measured(name: str, taken: tuple[Pair, ...], logs: stats.Array, p: float, rule: Rule, threshold: float) -> Finding:
    low, high = stats.shift_bounds(logs, alpha=rule.alpha / len(rule.looks))
    estimate, limit = float(np.median(stats.walsh_averages(logs))), math.log1p(threshold)
    verdict: Verdict = "inconclusive"
    if p <= rule.alpha and estimate > limit:
        verdict = "regressed"
    elif high <= limit:
        verdict = "ok"
    reason = f"too noisy after {len(taken)} pairs" if verdict == "inconclusive" else ""
    slow, low, high = (math.expm1(value) for value in (estimate, low, high))
    return Finding(name, verdict, threshold, slow, low, high, p=p, pairs=taken, reason=reason)


Side = Literal["base", "head"]
SIDES: tuple[Side, Side] = get_args(Side)
Records = Mapping[Side, Record]
Run = Callable[[Sequence[Side], Sequence[str], bool], Records]


def measure(
    run: Run,
    tests: Sequence[str],
    rule: Rule,
    *,
    thresholds: Mapping[str, float] | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda pair, tests: None,
) -> dict[str, Finding]:
    """Run pairs of processes until every test is decided or has had `max_pairs`.

    `run` measures tests on both sides, in the order given, in new processes; together, or one after the other. The
    order is random, and every second pair's the reverse of the last. Only undecided tests are run again. `progress` is
    told the number of the pair and how many tests are in it.
    """
    rule.check_power(len(tests))
    rng = random.Random(seed)
    pairs: dict[str, list[Pair]] = {test: [] for test in tests}
    reasons: dict[str, str] = {}
    apart: dict[str, str] = {}
    waiting, order = list(tests), list(SIDES)
    for count in range(1, rule.max_pairs + 1):
        progress(count, len(waiting))
        if count % 2:
            order = rng.sample(SIDES, 2)
        else:
            order.reverse()  # each side is first as often as the other
        taken, failed = _pair(run, order, waiting, apart)
        reasons |= failed
        for test, pair in taken.items():
            pairs[test].append(pair)
        waiting = [test for test in waiting if test not in reasons]
        if count in rule.looks:
            findings = judge(pairs, rule, thresholds)
            waiting = [test for test in waiting if findings[test].verdict == "inconclusive"]
        if not waiting:
            break
    findings = judge(pairs, rule, thresholds)
    for test, reason in reasons.items():
        findings[test] = Finding(test, "not comparable", findings[test].threshold, reason=reason)
    for test, reason in apart.items():
        why = f"base and head ran one after the other, since side by side: {reason}"
        if test not in reasons:
            findings[test] = replace(findings[test], reason="; ".join(filter(None, (findings[test].reason, why))))
    return findings


def _pair(
    run: Run, order: Sequence[Side], tests: Sequence[str], apart: dict[str, str]
) -> tuple[dict[str, Pair], dict[str, str]]:
    """{test: its pair} and {test: why it has none}.

    What fails beside the other side may need what only one can have, a port or most of the memory. Unless a side lacks
    it, it is taken again one after the other and its reason goes into `apart`, whose tests are never run otherwise.
    """
    taken: dict[str, Pair] = {}
    reasons: dict[str, str] = {}
    for together in (True, False):
        chosen = [test for test in tests if (test not in apart) == together and test not in reasons]
        if not chosen:
            continue
        records = run(order, chosen, together)
        failed = incomparable(records["base"], records["head"], chosen)
        taken |= {test: (records["base"].us[test], records["head"].us[test]) for test in chosen if test not in failed}
        lacking = {test for record in records.values() for test, why in record.failed.items() if why == NOT_THERE}
        again = {test: reason for test, reason in failed.items() if together and test not in lacking}
        apart |= again
        reasons |= {test: reason for test, reason in failed.items() if test not in again}
    return taken, reasons


def incomparable(base: Record, head: Record, tests: Sequence[str]) -> dict[str, str]:
    """{test: why its two numbers must not be compared}, for those of which that is true."""
    for side, record in (("base", base), ("head", head)):
        if record.error:
            return dict.fromkeys(tests, f"{side}: {record.error}")
    reasons = {}
    for test in tests:
        for side, record in (("head", head), ("base", base)):
            if test not in record.us:
                reasons[test] = f"{side}: {record.failed.get(test, 'not measured')}"
    if differing := machine_difference(base.fingerprint, head.fingerprint):
        reasons |= {test: f"the machine differs: {differing}" for test in tests if test not in reasons}
    return reasons


def machine_difference(base: Mapping[str, str], head: Mapping[str, str]) -> str:
    """In what two fingerprints differ, base's value first; empty where they are equal."""
    names = sorted(name for name in base.keys() | head.keys() if base.get(name) != head.get(name))
    return "; ".join(f"{name} {base.get(name, 'none')!r}, then {head.get(name, 'none')!r}" for name in names)
