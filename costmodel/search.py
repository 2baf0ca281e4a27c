"""Find the fastest candidate with few benchmarks: rank with the priors, measure a few, learn the residual, repeat.

A prior is any CostModel. Their first picks are measured in turn; from then on the mean is a shrunk non-negative stack
of the priors plus a Matern Gaussian process on what the stack gets wrong, and the next batch maximises expected
improvement (Jones et al. 1998, eq. 15), each pick believed at its mean before the next one is chosen (Ginsbourger et
al. 2010).

A greedy search with a wrong prior is worse than no model, so the search is guarded: the default is always measured, and
a share of every batch goes to model-free moves around the best so far, the more the worse measured and predicted ranks
agree. Candidates may differ in config or in source.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls
from scipy.stats import norm, spearmanr

from costmodel.features import config_features
from costmodel.gaussian import MaternProcess
from costmodel.measure.blocks import Confirmation, confirm
from costmodel.records import CostModel, Measurement, Prediction, Runner, UserError, Variant

BATCH = 8
FIRST_PICKS = 8
FIRST_PICKS_WITHOUT_PRIOR = 16
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
        self._features = config_features(self.candidates)
        self._priors = np.array([[math.log2(p.median_us) for p in prior] for prior in priors]).reshape(
            len(priors), len(self.candidates)
        )
        fails = np.array([[p.p_fail for p in prior] for prior in priors])
        self._p_fail = fails.mean(axis=0) if len(priors) else np.zeros(len(self.candidates))
        self._default = self._index.get(default) if default is not None else None
        self._guarded = guarded
        self._rng = np.random.default_rng(seed)
        self._log2_us: dict[int, float] = {}
        self._failed: set[int] = set()
        self._asked: set[int] = set()
        self._first = self._first_picks()

    # -- ask and tell ---------------------------------------------------------------------------------------------

    def ask(self, count: int = BATCH) -> list[Variant]:
        """Up to `count` candidates not asked for before; empty when the space is used up."""
        picks: list[int] = []
        goal = FIRST_PICKS if len(self._priors) else FIRST_PICKS_WITHOUT_PRIOR
        for i in self._first:
            if len(picks) < count and len(self._asked) < goal and i not in self._asked:
                picks.append(i)
                self._asked.add(i)
        if not picks:
            picks = self._informed(count) if len(self._log2_us) >= 2 else self._take(self._first, count)
        return [self.candidates[i] for i in picks]

    def tell(self, measurements: Sequence[Measurement]) -> None:
        """Take in measurements of candidates (others are ignored), failures among them."""
        for m in measurements:
            i = self._index.get(m.variant)
            if i is None:
                continue
            self._asked.add(i)
            if m.status == "ok":
                self._log2_us[i] = math.log2(m.latency_us)
            else:
                self._failed.add(i)

    # -- what is believed -----------------------------------------------------------------------------------------

    def agreement(self) -> float:
        """Rank correlation of the measured latencies with the mean of the priors; 1 while unknown."""
        seen = list(self._log2_us)
        if not len(self._priors) or len(seen) < 4:
            return 1.0
        rho = spearmanr(self._priors.mean(axis=0)[seen], list(self._log2_us.values())).statistic
        return 0.0 if math.isnan(rho) else float(rho)

    def prior_weights(self) -> np.ndarray:
        """Non-negative ridge weights of the priors, shrunk towards equal ones by as much as the data are few."""
        count = len(self._priors)
        if count == 0 or len(self._log2_us) < 3:
            return np.full(count, 1.0 / max(count, 1))
        seen = list(self._log2_us)
        told = self._priors[:, seen].T
        told, target = told - told.mean(axis=0), np.array(list(self._log2_us.values()))
        target = target - target.mean()
        shrink = math.sqrt(4.0 * max(float(told.var()), 1e-3))
        design = np.vstack([told, shrink * np.eye(count)])
        return nnls(design, np.concatenate([target, np.full(count, shrink / count)]))[0]

    def posterior(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of log2 latency_us over all candidates; needs two successes."""
        process, mean = self._fit()
        residual, sd = process.predict(self._features)
        return mean + residual, sd

    def p_better_remains(self, *, within: float = 0.05, draws: int = 400) -> float:
        """Probability that an unmeasured candidate beats the best by more than `within`, from joint posterior draws."""
        rest = np.array([i for i in range(len(self.candidates)) if i not in self._log2_us and i not in self._failed])
        if len(self._log2_us) < 2 or not len(rest):
            return 0.0 if not len(rest) else 1.0
        process, mean = self._fit()
        residual, sd = process.predict(self._features[rest])
        likely = rest[np.argsort(mean[rest] + residual - 2 * sd)[:256]]
        samples = mean[likely] + process.sample(self._features[likely], draws, np.random.default_rng(0))
        return float((samples.min(axis=1) < min(self._log2_us.values()) - math.log2(1 + within)).mean())

    # -- how picks are made ---------------------------------------------------------------------------------------

    def _first_picks(self) -> list[int]:
        """The default, then the priors' favourites in turn; at random without a prior."""
        if len(self._priors):
            likely_to_fail = self._p_fail > 0.5
            orders = [np.lexsort((prior, likely_to_fail)) for prior in self._priors]
            order = [int(i) for rank in zip(*orders, strict=True) for i in rank]
        else:
            order = [int(i) for i in self._rng.permutation(len(self.candidates))]
        head = [self._default] if self._default is not None else []
        return list(dict.fromkeys([*head, *order]))

    def _take(self, order: Sequence[int], count: int) -> list[int]:
        picks = [i for i in order if i not in self._asked][:count]
        self._asked.update(picks)
        return picks

    def _informed(self, count: int) -> list[int]:
        moves = round(count * min(0.5, 0.125 + 0.375 * (1 - max(self.agreement(), 0.0))))
        moves = moves if self._guarded and len(self._priors) else 0
        picks = self._take(list(self._local_moves()), moves)
        return picks + self._expected_improvement(count - len(picks))

    def _local_moves(self) -> Iterator[int]:
        """Unmeasured candidates nearest to the best three, in random order among equals: no model is asked."""
        for best in sorted(self._log2_us, key=self._log2_us.__getitem__)[:3]:
            changed = (np.abs(self._features - self._features[best]) > 1e-9).sum(axis=1) + self._rng.random(
                len(self.candidates)
            )
            yield from (int(i) for i in np.argsort(changed)[1:17])

    def _fit(self) -> tuple[MaternProcess, np.ndarray]:
        """The process on the residuals and the prior mean it stands on, over all candidates."""
        seen = list(self._log2_us)
        target = np.array(list(self._log2_us.values()))
        mean = self.prior_weights() @ self._priors if len(self._priors) else np.zeros(len(self.candidates))
        mean = mean + float(np.mean(target - mean[seen]))
        process = MaternProcess()
        process.fit(self._features[seen], target - mean[seen])
        return process, mean

    def _expected_improvement(self, count: int) -> list[int]:
        process, mean = self._fit()
        best = min(self._log2_us.values())
        succeeds = 1.0 - self._failure_rate()
        picks: list[int] = []
        while len(picks) < count:
            rest = np.array([i for i in range(len(self.candidates)) if i not in self._asked])
            if not len(rest):
                break
            residual, sd = process.predict(self._features[rest])
            gain = best - (mean[rest] + residual)
            improvement = gain * norm.cdf(gain / sd) + sd * norm.pdf(gain / sd)
            chosen = int(np.argmax(improvement * succeeds[rest]))
            i = int(rest[chosen])
            picks.append(i)
            self._asked.add(i)
            process.add(self._features[i : i + 1], residual[chosen : chosen + 1])
        return picks

    def _failure_rate(self) -> np.ndarray:
        """The priors' failure probability, moved by how the measured neighbours of a candidate fared."""
        if not self._failed:
            return np.minimum(self._p_fail, 0.95)
        seen = [*self._log2_us, *self._failed]
        failed = np.array([i in self._failed for i in seen], float)
        squares = ((self._features[:, None, :] - self._features[seen][None]) ** 2).sum(axis=2)
        near = np.exp(-squares / self._features.shape[1] * 4)
        return (near @ failed + self._p_fail) / (near.sum(axis=1) + 1.0)


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
    tuner = Tuner(candidates, [p.predict(candidates, runner.device) for p in priors], default=default, seed=seed)
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
