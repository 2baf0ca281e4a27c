"""Find the fastest candidate with few benchmarks: rank with the priors, measure a few, learn the residual, repeat.

A prior is any CostModel; how their predictions and the measurements become the next picks is in `picking`. Candidates
may differ in config or in source.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from costmodel.features import config_features
from costmodel.measure.blocks import Confirmation, confirm
from costmodel.notebook import bars, format_us, shown
from costmodel.picking import Picker
from costmodel.records import CostModel, Device, Measurement, Prediction, Runner, UserError, Variant

BATCH = 8
ASKED = 4096  # candidates that a prior is asked about at once
NEXT_BEST, CONTENDS = 10, 1.15  # how many are confirmed beside the winner, and how near they must be


@dataclass(frozen=True, slots=True)
class Budget:
    """How much may be measured: evaluations, seconds, or whichever ends first."""

    evaluations: int | None = None
    seconds: float | None = None

    @staticmethod
    def parse(text: str) -> Budget:
        """ "40" counts evaluations; "60s", "8m" and "1h" are time."""
        match = re.fullmatch(r"(\d+(?:\.\d+)?)(s|m|h)?", text.strip())
        if not match or float(match[1]) <= 0 or (not match[2] and "." in match[1]):
            raise UserError(
                f"got budget {text!r}, expected a number of evaluations such as 40 or a time such as 60s or 8m"
            )
        if match[2]:
            return Budget(seconds=float(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2]])
        return Budget(evaluations=int(match[1]))


@dataclass(frozen=True, slots=True)
class TuneResult:
    """What a search found. `measurements` are in the order in which they were taken, `reused` of them from the store.

    best_us and default_us come from the confirming rounds, in which the winner ran beside its next best; default_us is
    NaN where the default failed. `ties` lie within 5 % of the winner. `p_better_remains` is the probability, by the
    search's own posterior, that an unmeasured candidate is more than 5 % faster.
    """

    best: Variant
    best_us: float
    default_us: float
    ties: tuple[Variant, ...]
    measurements: tuple[Measurement, ...]
    reused: int
    space_size: int
    p_better_remains: float
    stopped_by: str

    def __repr__(self) -> str:
        return f"TuneResult({', '.join(f'{name} {told}' for name, told in self._told().items())})"

    def _repr_html_(self) -> str:
        """For a notebook: the figures, and the best so far over the benchmarks, as a share of the best."""
        reached = self.best_so_far_us()
        curve = [reached[-1] / us for us in reached]
        picture = bars(curve, f"share of the best reached after each of {len(curve)} benchmarks")
        return shown("Tuned", self._told(), picture=picture)

    def _told(self) -> dict[str, str]:
        gain = f", {self.speedup:.2f}x the best" if math.isfinite(self.speedup) else ""
        found = {
            "best": f"{self.best.kernel.name} {self.best.problem}: {self.best.config}",
            "latency": format_us(self.best_us),
            "default": format_us(self.default_us) + gain if math.isfinite(self.default_us) else "failed",
            "measured": f"{len(self.measurements)} of {self.space_size} configs",
        }
        found |= {"ties": f"{len(self.ties)} within 5 %"} if self.ties else {}
        return found | {"missed": f"a config more than 5 % faster, {self.p_better_remains:.0%} likely"}

    @property
    def speedup(self) -> float:
        """Default latency over best latency; NaN where the default failed."""
        return self.default_us / self.best_us

    def best_so_far_us(self) -> list[float]:
        """Infinite until the first success."""
        best, curve = math.inf, []
        for m in self.measurements:
            best = min(best, m.latency_us) if m.status == "ok" else best
            curve.append(best)
        return curve


class Tuner:
    """Ask for candidates, tell their measurements. Deterministic for equal inputs and seed."""

    def __init__(
        self,
        candidates: Sequence[Variant],
        priors: Sequence[Sequence[Prediction]],
        *,
        default: Variant | None = None,
        guarded: bool = True,
        seed: int,
    ) -> None:
        """priors: per prior one list of Predictions, in the order of candidates; without any, a search from scratch."""
        if not candidates:
            raise UserError("got no candidates, expected at least one valid config; check the space's constraints")
        self.candidates = list(candidates)
        self._index = {variant: i for i, variant in enumerate(self.candidates)}
        log2_us = np.array([[math.log2(p.median_us) for p in prior] for prior in priors])
        fails = np.array([[p.p_fail for p in prior] for prior in priors])
        self._picker = Picker(
            config_features(self.candidates),
            log2_us.reshape(len(priors), len(self.candidates)),
            p_fail=fails.mean(axis=0) if len(priors) else None,
            default=self._index.get(default) if default is not None else None,
            guarded=guarded,
            seed=seed,
        )

    def ask(self, count: int = BATCH) -> list[Variant]:
        """Up to `count` candidates not asked for before; empty when the space is used up."""
        return [self.candidates[i] for i in self._picker.ask(count)]

    def tell(self, measurements: Sequence[Measurement]) -> None:
        """Take in measurements of candidates (others are ignored), failures among them."""
        for m in measurements:
            if (i := self._index.get(m.variant)) is not None:
                self._picker.tell(i, math.log2(m.latency_us) if m.status == "ok" else None)

    def prior_weights(self) -> np.ndarray:
        """How far each prior is believed, by what was measured."""
        return self._picker.prior_weights()

    def posterior(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of log2 latency_us over all candidates; needs two successes."""
        return self._picker.posterior()

    def p_better_remains(self, *, within: float = 0.05) -> float:
        """Probability that an unmeasured candidate beats the best by more than `within`."""
        return self._picker.p_better_remains(within=within)


def tune(
    candidates: Sequence[Variant],
    priors: Sequence[CostModel],
    runner: Runner,
    *,
    default: Variant | None,
    budget: Budget,
    seed: int,
    known: Sequence[Measurement] = (),
    progress: Callable[[Measurement], None] = lambda measurement: None,
    stop_below: float = 0.05,
) -> TuneResult:
    """Search `candidates` on runner.device. Raises UserError where every measured candidate failed.

    known: what a store already holds; it counts towards the budget, so a killed search goes on where it was.
    stop_below: the search ends once the probability that a candidate more than 5 % faster remains has been below this
    for two batches. What must not be lost on a kill the runner stores as it measures.
    """
    started = time.monotonic()
    told = [_medians(prior, candidates, runner.device) for prior in priors]
    tuner = Tuner(candidates, told, default=default, seed=seed)
    wanted = set(candidates)
    measured = [m for m in known if m.variant in wanted]
    tuner.tell(measured)
    reused, calm, stopped_by = len(measured), 0, "space"
    while True:
        count = BATCH if budget.evaluations is None else min(BATCH, budget.evaluations - len(measured))
        late = budget.seconds is not None and time.monotonic() - started >= budget.seconds
        if count <= 0 or late:
            stopped_by = "budget"
            break
        batch = tuner.ask(count)
        if not batch:
            break
        results = runner.measure(batch)
        tuner.tell(results)
        measured += results
        for m in results:
            progress(m)
        calm = calm + 1 if tuner.p_better_remains() < stop_below else 0
        if calm == 2 and len(measured) >= 2 * BATCH:
            stopped_by = "confidence"
            break
    confirmed = _confirm(measured, default, runner, seed)
    best_us = confirmed.latencies_us[0][1]
    return TuneResult(
        best=confirmed.winner,
        best_us=best_us,
        default_us=dict(confirmed.latencies_us).get(default, math.nan) if default is not None else math.nan,
        ties=tuple(v for v in confirmed.ties if v != confirmed.winner),
        measurements=tuple(measured),
        reused=reused,
        space_size=len(tuner.candidates),
        p_better_remains=tuner.p_better_remains(),
        stopped_by=stopped_by,
    )


def _medians(prior: CostModel, candidates: Sequence[Variant], device: Device) -> list[Prediction]:
    """Predictions of which only the median and the probability of failure are kept: whole ones hold a grid each."""
    parts = (candidates[start : start + ASKED] for start in range(0, len(candidates), ASKED))
    told = (prediction for part in parts for prediction in prior.predict(part, device))
    return [replace(p, support_us=(p.median_us,), weights=(1.0,)) for p in told]


def _confirm(measured: Sequence[Measurement], default: Variant | None, runner: Runner, seed: int) -> Confirmation:
    """The best, its next best and the default, measured side by side: one sitting may have flattered the winner."""
    ok = sorted((m for m in measured if m.status == "ok"), key=lambda m: m.latency_us)
    if not ok:
        reasons = sorted({f"{m.status}: {m.error}" for m in measured}) or ["nothing was measured"]
        raise UserError(f"got {len(measured)} failures and no success, expected one; the first reason: {reasons[0]}")
    contenders = [m.variant for m in ok[: 1 + NEXT_BEST] if m.latency_us <= CONTENDS * ok[0].latency_us]
    if default is not None and any(m.variant == default for m in ok):
        contenders.append(default)
    return confirm(runner, list(dict.fromkeys(contenders)), seed=seed)
