"""Which candidates to measure next, as arrays: what the search believes and how it chooses.

The mean is a shrunk non-negative stack of the priors plus a Matern Gaussian process on what the stack gets wrong. The
priors are dense where measurements are few, so they also say how the process should see the candidates: each parameter
is scaled by how much the priors vary along it (the total effect of Homma and Saltelli, 1996), and each prior is a
further coordinate, so that a prior that is right in order but not in scale can be bent. Where a process that knows
nothing of the priors explains the measurements better, it takes over. A batch maximises expected improvement (Jones et
al. 1998, eq. 15), each pick believed at its mean before the next one is chosen (Ginsbourger et al. 2010).

A greedy search with a wrong prior is worse than no model, so the search is guarded: the default is always measured,
and in a batch some picks are model-free moves around the best so far, the more the longer nothing better was found.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from scipy.optimize import nnls
from scipy.stats import norm

from costmodel.gaussian import MaternProcess

FIRST_PICKS = 8
FIRST_PICKS_WITHOUT_PRIOR = 16
MOVES = (0.0, 0.25, 0.25, 0.5)  # share of model-free moves, by batches since the best was found
PRIOR_HANDICAP = 4.0  # nats of log marginal likelihood in favour of the priors' view
NARROWEST, WIDEST = 0.05, 5.0  # bounds on the scale of a parameter, against the root mean square of all
LIKELY = 2048  # candidates whose improvement is worked out, the likeliest ones


class Picker:
    """Ask for candidates (as indices), tell their log2 latencies. Deterministic for equal inputs and seed."""

    def __init__(
        self,
        features: np.ndarray,
        priors: np.ndarray,
        *,
        p_fail: np.ndarray | None = None,
        default: int | None = None,
        guarded: bool = True,
        seed: int,
    ) -> None:
        """features (m, d) standardised; priors (k, m) in log2, each up to a constant of its own; p_fail (m,)."""
        self.size = len(features)
        self._priors = priors - np.median(priors, axis=1, keepdims=True) if len(priors) else priors
        self._features = features
        self._prior_view = coordinates(features, self._priors)
        self._p_fail = np.zeros(self.size) if p_fail is None else p_fail
        self._guarded = guarded
        self._rng = np.random.default_rng(seed)
        self._told: dict[int, float] = {}
        self._failed: set[int] = set()
        self._asked = np.zeros(self.size, bool)
        self._stale = 0  # batches since the best was found
        self._best = math.inf
        self._first = self._first_picks(default)

    @property
    def count(self) -> int:
        """How many succeeded."""
        return len(self._told)

    # -- ask and tell ---------------------------------------------------------------------------------------------

    def ask(self, count: int) -> list[int]:
        """Up to `count` candidates not asked for before; empty when the space is used up."""
        goal = FIRST_PICKS if len(self._priors) else FIRST_PICKS_WITHOUT_PRIOR
        asked = int(self._asked.sum())
        if asked < goal:
            return self._take(self._first, min(count, goal - asked))
        if len(self._told) < 2:
            return self._take(self._first, count)
        best = min(self._told.values())
        self._stale = 0 if best < self._best - 1e-9 else self._stale + 1
        self._best = best
        moves = round(count * MOVES[min(self._stale, len(MOVES) - 1)]) if self._guarded else 0
        picks = self._take(self._local_moves(), moves)
        return picks + self._expected_improvement(count - len(picks))

    def tell(self, index: int, log2_us: float | None) -> None:
        """None: it failed."""
        self._asked[index] = True
        if log2_us is None:
            self._failed.add(index)
        else:
            self._told[index] = log2_us

    # -- what is believed -----------------------------------------------------------------------------------------

    def prior_weights(self) -> np.ndarray:
        """Non-negative ridge weights of the priors, shrunk towards equal ones by as much as the data are few."""
        count = len(self._priors)
        if count == 0 or len(self._told) < 3:
            return np.full(count, 1.0 / max(count, 1))
        seen = list(self._told)
        told = self._priors[:, seen].T
        told, target = told - told.mean(axis=0), np.array(list(self._told.values()))
        target = target - target.mean()
        shrink = math.sqrt(4.0 * max(float(told.var()), 1e-3))
        design = np.vstack([told, shrink * np.eye(count)])
        return nnls(design, np.concatenate([target, np.full(count, shrink / count)]))[0]

    def posterior(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of log2 latency over all candidates; needs two successes."""
        process, mean, features = self._fit()
        residual, sd = process.predict(features)
        return mean + residual, sd

    def p_better_remains(self, *, within: float = 0.05, draws: int = 400) -> float:
        """Probability that an unmeasured candidate beats the best by more than `within`, from joint posterior draws."""
        rest = np.flatnonzero(~self._known())
        if len(self._told) < 2 or not len(rest):
            return 0.0 if not len(rest) else 1.0
        process, mean, features = self._fit()
        residual, sd = process.predict(features[rest])
        likely = rest[np.argsort(mean[rest] + residual - 2 * sd)[:256]]
        samples = mean[likely] + process.sample(features[likely], draws, np.random.default_rng(0))
        return float((samples.min(axis=1) < min(self._told.values()) - math.log2(1 + within)).mean())

    # -- how picks are made ---------------------------------------------------------------------------------------

    def _known(self) -> np.ndarray:
        known = np.zeros(self.size, bool)
        known[[*self._told, *self._failed]] = True
        return known

    def _first_picks(self, default: int | None) -> list[int]:
        """The default, then the priors' favourites in turn; at random without a prior."""
        if len(self._priors):
            likely_to_fail = self._p_fail > 0.5
            orders = [np.lexsort((prior, likely_to_fail)) for prior in self._priors]
            order = [int(i) for rank in zip(*orders, strict=True) for i in rank]
        else:
            order = [int(i) for i in self._rng.permutation(self.size)]
        return list(dict.fromkeys([*([default] if default is not None else []), *order]))

    def _take(self, order: Sequence[int] | Iterator[int], count: int) -> list[int]:
        picks: list[int] = []
        for i in order:
            if len(picks) == count:
                break
            if not self._asked[i]:
                picks.append(i)
                self._asked[i] = True
        return picks

    def _local_moves(self) -> Iterator[int]:
        """Candidates nearest to the best three, in random order among equals: no model is asked."""
        for best in sorted(self._told, key=self._told.__getitem__)[:3]:
            changed = (np.abs(self._features - self._features[best]) > 1e-9).sum(axis=1) + self._rng.random(self.size)
            near = np.argpartition(changed, min(24, self.size - 1))[:25]
            yield from (int(i) for i in near[np.argsort(changed[near])])

    def _fit(self) -> tuple[MaternProcess, np.ndarray, np.ndarray]:
        """The process on the residuals, the mean it stands on (m,), and the candidates as it sees them (m, d).

        With priors there are two views: as the priors see the candidates, on their stack; or without them. The one that
        explains the measurements better is taken, the priors' with a handicap in its favour while the data are few.
        """
        seen = list(self._told)
        target = np.array(list(self._told.values()))
        views = [(self._features, np.zeros(self.size), 0.0)]
        if len(self._priors):
            views.append((self._prior_view, self.prior_weights() @ self._priors, PRIOR_HANDICAP))
        fits = []
        for features, stack, handicap in views:
            mean = stack + float(np.mean(target - stack[seen]))
            process = MaternProcess()
            process.fit(features[seen], target - mean[seen])
            fits.append((process.evidence + handicap, process, mean, features))
        _, process, mean, features = max(fits, key=lambda fit: fit[0])
        return process, mean, features

    def _expected_improvement(self, count: int) -> list[int]:
        process, mean, features = self._fit()
        rest = np.flatnonzero(~self._asked)
        if not len(rest):
            return []
        goal = min(self._told.values())
        succeeds = 1.0 - self._failure_rate()
        residual, sd = process.predict(features[rest])
        if len(rest) > LIKELY:
            likely = np.argpartition(mean[rest] + residual - 2 * sd, LIKELY)[:LIKELY]
            rest = rest[likely]
        believed = process.believer(features[rest])
        gain = goal - (mean[rest] + believed.mean)
        picks: list[int] = []
        while len(picks) < min(count, len(rest)):
            sd = believed.sd()
            improvement = (gain * norm.cdf(gain / sd) + sd * norm.pdf(gain / sd)) * succeeds[rest]
            improvement[[k for k, i in enumerate(rest) if self._asked[i]]] = -math.inf
            chosen = int(np.argmax(improvement))
            picks.append(int(rest[chosen]))
            self._asked[rest[chosen]] = True
            believed.add(chosen)
        return picks

    def _failure_rate(self) -> np.ndarray:
        """The priors' failure probability, moved by how the measured neighbours of a candidate fared."""
        if not self._failed:
            return np.minimum(self._p_fail, 0.95)
        seen = [*self._told, *self._failed]
        failed = np.array([i in self._failed for i in seen], float)
        squares = ((self._features[:, None, :] - self._features[seen][None]) ** 2).sum(axis=2)
        near = np.exp(-squares / self._features.shape[1] * 4)
        return (near @ failed + self._p_fail) / (near.sum(axis=1) + 1.0)


def coordinates(features: np.ndarray, priors: np.ndarray) -> np.ndarray:
    """(m, d + k): features scaled by the priors' total effects along them, then the priors standardised."""
    if not len(priors):
        return features
    effects = np.sqrt(np.mean([total_effects(features, prior) for prior in priors], axis=0))
    if effects.any():
        features = features * np.clip(effects / np.sqrt((effects**2).mean()), NARROWEST, WIDEST)
    spread = priors.std(axis=1, keepdims=True)
    return np.column_stack(
        [features, *((priors - priors.mean(axis=1, keepdims=True)) / np.where(spread > 0, spread, 1.0))]
    )


def total_effects(features: np.ndarray, values: np.ndarray) -> np.ndarray:
    """(d,) mean variance of values (m,) among candidates that differ in that column of features (m, d) alone."""
    codes = np.stack([np.unique(column, return_inverse=True)[1] for column in features.T], axis=1)
    effects = np.zeros(codes.shape[1])
    for column in range(codes.shape[1]):
        _, line = np.unique(np.delete(codes, column, axis=1), axis=0, return_inverse=True)
        count = np.bincount(line)
        squares = (values - np.bincount(line, values)[line] / count[line]) ** 2
        along = count[line] > 1  # alone on its line, a candidate says nothing
        effects[column] = squares[along].mean() if along.any() else 0.0
    return effects
