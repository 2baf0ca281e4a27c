"""Statistics of latencies, predictions and searches. Arrays are one-dimensional; latencies are positive, unit free.

Nothing is dropped in silence: arrays of different or no length, and values that are not finite, raise UserError.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import scipy.stats
from numpy.typing import ArrayLike, NDArray
from scipy.special import gammaln

from costmodel.records import UserError

Array = NDArray[np.float64]
EXACT_PAIRS = 20  # 2**20 sign patterns take under a second


def _array(values: ArrayLike, name: str = "values") -> Array:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size == 0:
        raise UserError(f"got {name} of shape {array.shape}, expected a non-empty list of numbers")
    if not np.isfinite(array).all():
        raise UserError(
            f"got {name} with {(~np.isfinite(array)).sum()} numbers that are not finite; drop failures first"
        )
    return array


def _pair(true: ArrayLike, predicted: ArrayLike) -> tuple[Array, Array]:
    left, right = _array(true, "true"), _array(predicted, "predicted")
    if left.size != right.size:
        raise UserError(f"got {left.size} true and {right.size} predicted numbers, expected equally many")
    return left, right


def _positive(values: Array, name: str) -> Array:
    if (values <= 0).any():
        raise UserError(f"got {name} with {(values <= 0).sum()} numbers of zero or less, expected positive latencies")
    return values


# ---- location and intervals ----


def median(values: ArrayLike) -> float:
    """The middle value, or the mean of the two middle ones."""
    return float(np.median(_array(values)))


def geometric_mean(values: ArrayLike) -> float:
    """exp(mean(log x)); all x > 0."""
    return float(np.exp(np.log(_positive(_array(values), "values")).mean()))


def bootstrap_interval(
    values: ArrayLike,
    statistic: Callable[[Array], float] = median,
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int,
) -> tuple[float, float]:
    """The percentile bootstrap interval of a statistic (Efron 1979).

    With t*_b the statistic of n values drawn with replacement: (quantile (1-c)/2 of t*, quantile (1+c)/2 of t*).
    """
    array = _array(values)
    if not 0 < confidence < 1:
        raise UserError(f"got confidence {confidence}, expected a number between 0 and 1, such as 0.95")
    rng = np.random.default_rng(seed)
    drawn = [statistic(array[rng.integers(0, array.size, array.size)]) for _ in range(resamples)]
    low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def median_interval(
    values: ArrayLike, *, confidence: float = 0.95, resamples: int = 2000, seed: int
) -> tuple[float, float]:
    """The percentile bootstrap interval of the median, as `bootstrap_interval`; values may be infinite ("never")."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size == 0 or np.isnan(array).any():
        raise UserError(f"got values of shape {array.shape} or with NaN, expected a non-empty list of numbers")
    drawn = np.random.default_rng(seed).integers(0, array.size, (resamples, array.size))
    medians = np.sort(np.median(array[drawn], axis=1))  # no interpolation: between a number and never lies nothing
    low, high = (medians[round(q * (resamples - 1))] for q in ((1 - confidence) / 2, (1 + confidence) / 2))
    return float(low), float(high)


# ---- order ----


def spearman(true: ArrayLike, predicted: ArrayLike) -> float:
    """Pearson correlation of the ranks (ties share their mean rank); NaN where one side is constant."""
    left, right = _pair(true, predicted)
    if np.ptp(left) == 0 or np.ptp(right) == 0:
        return float("nan")
    return float(scipy.stats.spearmanr(left, right).statistic)


def kendall(true: ArrayLike, predicted: ArrayLike) -> float:
    """tau-b = (concordant - discordant) / sqrt((pairs - ties in true) * (pairs - ties in predicted)).

    NaN where one side is constant.
    """
    left, right = _pair(true, predicted)
    if np.ptp(left) == 0 or np.ptp(right) == 0:
        return float("nan")
    return float(scipy.stats.kendalltau(left, right).statistic)


def kendall_apart(true: ArrayLike, predicted: ArrayLike, *, apart: float) -> float:
    """(concordant - discordant) / pairs, over the pairs whose larger true value is over (1 + apart) times the smaller:
    closer ones are within the noise. A pair that is predicted equal counts as half right. NaN where there is no pair.
    """
    left, right = _pair(true, predicted)
    order = np.argsort(_positive(left, "true"), kind="stable")
    left, right = left[order], right[order]
    first = np.searchsorted(left, (1 + apart) * left, side="right")  # of each, the first that is clearly slower
    agreed = pairs = 0.0
    for i, start in enumerate(first):
        agreed += float(np.sign(right[start:] - right[i]).sum())
        pairs += left.size - start
    return float(agreed / pairs) if pairs else float("nan")


# ---- size of the error ----


def _ape(true: ArrayLike, predicted: ArrayLike) -> Array:
    left, right = _pair(true, predicted)
    return np.abs(right - left) / _positive(left, "true")


def median_ape(true: ArrayLike, predicted: ArrayLike) -> float:
    """median(|predicted - true| / true), a share: 0.1 is 10 %."""
    return float(np.median(_ape(true, predicted)))


def mape(true: ArrayLike, predicted: ArrayLike) -> float:
    """mean(|predicted - true| / true), a share: 0.1 is 10 %."""
    return float(np.mean(_ape(true, predicted)))


def mape_scaled(true: ArrayLike, predicted: ArrayLike) -> float:
    """mape(true, s * predicted) with s = exp(median(log true - log predicted)): the error but for one scale."""
    left, right = _pair(true, predicted)
    logs = np.log(_positive(left, "true")) - np.log(_positive(right, "predicted"))
    return mape(left, np.exp(np.median(logs)) * right)


def coverage(lower: ArrayLike, upper: ArrayLike, true: ArrayLike) -> float:
    """The share of i with lower_i <= true_i <= upper_i."""
    low, value = _pair(lower, true)
    high, _ = _pair(upper, true)
    return float(np.mean((low <= value) & (value <= high)))


# ---- choice ----


def top_k_slowdown(true: ArrayLike, predicted: ArrayLike, k: int) -> float:
    """min(true over the k smallest predictions) / min(true): 1 is perfect.

    Where predictions tie across the k-th place, the expectation over a random choice among them: a constant model
    scores as random choice does, not as the order of the list.
    """
    left, right = _pair(true, predicted)
    if k < 1:
        raise UserError(f"got k={k}, expected at least 1")
    optimum = _positive(left, "true").min()
    if k >= left.size:
        return 1.0
    last = np.partition(right, k - 1)[k - 1]
    sure, tied = left[right < last], np.sort(left[right == last])
    ceiling = sure.min() if sure.size else np.inf
    return _expected_minimum(tied, k - sure.size, ceiling) / float(optimum)


def top_k_error(true: ArrayLike, predicted: ArrayLike, k: int) -> float:
    """top_k_slowdown - 1: what TpuGraphs (Phothilimthana et al., 2023) reports of a tile model, 0 is perfect. A score
    over graphs is 1 - its mean."""
    return top_k_slowdown(true, predicted, k) - 1.0


def _expected_minimum(values: Array, count: int, ceiling: float) -> float:
    """E[min(ceiling, smallest of `count` drawn from ascending values without replacement)].

    P(the i-th smallest, i = 0.., is the smallest drawn) = C(n-1-i, count-1) / C(n, count), by its recurrence in i.
    """
    size = values.size
    lowest = min(ceiling, float(values[0]))
    probability, total = count / size, lowest  # summed as an excess, so that rounding cannot fall below the lowest
    for i in range(size - count + 1):
        total += probability * (min(ceiling, float(values[i])) - lowest)
        if i < size - count:
            probability *= (size - count - i) / (size - 1 - i)
    return total


def regret(true: ArrayLike, chosen: int) -> float:
    """true[chosen] / min(true) - 1: how much slower the choice is than the optimum; 0 is perfect."""
    left = _positive(_array(true, "true"), "true")
    if not 0 <= chosen < left.size:
        raise UserError(f"got choice {chosen} of {left.size} candidates, expected 0 to {left.size - 1}")
    return float(left[chosen] / left.min() - 1)


# ---- searches ----


def evaluations_to(trace: Sequence[float], optimum: float, *, within: float = 0.05) -> int | None:
    """The least i with min(trace[:i]) <= (1 + within) * optimum; None if it is never reached.

    `trace` holds latencies in the order they were measured; NaN is a failure, which costs its evaluation.
    """
    reached = np.flatnonzero(np.asarray(trace, dtype=np.float64) <= (1 + within) * optimum)
    return int(reached[0]) + 1 if reached.size else None


def expected_random_evaluations(latencies: ArrayLike, *, within: float = 0.05, failures: int = 0) -> float:
    """Expected evaluations of random search without replacement until one is within x % of the best: (N + 1) / (K + 1).

    N counts all candidates, `failures` included; K those with latency <= (1 + within) * min.
    """
    array = _positive(_array(latencies, "latencies"), "latencies")
    good = int((array <= (1 + within) * array.min()).sum())
    return (array.size + failures + 1) / (good + 1)


def expected_random_best(latencies: ArrayLike, evaluations: int, *, failures: int = 0) -> Array:
    """(evaluations,) the expected best latency of random search without replacement after 1, 2, ... evaluations.

    With x_0 <= x_1 <= ... the latencies and N candidates, `failures` included, of which t were evaluated:
    E = x_0 + sum_i (x_{i+1} - x_i) C(N - i - 1, t) / C(N, t), the chance that none of the i + 1 fastest was among them.
    Having met failures alone counts as the slowest latency.
    """
    ordered = np.sort(_positive(_array(latencies, "latencies"), "latencies"))
    total = ordered.size + failures
    counts = np.minimum(np.arange(1, evaluations + 1), total)
    best = np.full(evaluations, ordered[0])
    left = total - np.arange(1, ordered.size)  # candidates beyond the i + 1 fastest
    for i, drawn in enumerate(counts):
        possible = left >= drawn
        missed = _log_choose(left[possible], drawn) - _log_choose(np.array([total]), drawn)
        best[i] += float((np.diff(ordered)[possible] * np.exp(missed)).sum())
    return best


def _log_choose(total: NDArray[np.int64], drawn: int) -> Array:
    return np.asarray(gammaln(total + 1) - gammaln(drawn + 1) - gammaln(total - drawn + 1), dtype=np.float64)


def p_score(curves: NDArray[np.float64], latencies: ArrayLike, *, failures: int = 0) -> tuple[float, int]:
    """(score, evaluations it covers): how far a search is ahead of random search, 0 as good, 1 the optimum at once.

    Willemsen et al., FGCS 2024. curves (runs, budget): best latency so far, infinite until the first success. With f*
    the optimum and m the median, random search is expected to reach f* + 0.05 (m - f*) within B = (N - K) / (K + 1)
    evaluations, K candidates being that good; P(t) = (random(t) - mean_runs(t)) / (random(t) - f*) is averaged over
    t = 1 .. min(B, budget). A budget below B is a score of the start of the search alone; the count says so.
    """
    array = _positive(_array(latencies, "latencies"), "latencies")
    optimum = array.min()
    good = int((array <= optimum + 0.05 * (np.median(array) - optimum)).sum())
    total = array.size + failures
    count = int(min(max(np.ceil((total - good) / (good + 1)), 1), curves.shape[1]))
    found = np.minimum(curves[:, :count], array.max()).mean(axis=0)
    random = expected_random_best(array, count, failures=failures)
    ahead = random - optimum > 1e-12 * optimum
    return (float(((random - found)[ahead] / (random - optimum)[ahead]).mean()) if ahead.any() else 1.0), count


def tied_with_best(samples: Sequence[Sequence[float]], *, deviations: float = 1.96) -> int:
    """How many of these have a mean that repeats cannot tell from the smallest mean, itself among them.

    mean_i - mean_best <= deviations * sqrt(se_i^2 + se_best^2), se = standard deviation / sqrt(n). What was measured
    once has no standard error of its own and counts as exact.
    """
    if not samples:
        raise UserError("got no samples, expected at least one list of them")
    means = np.array([np.mean(_array(one, "samples")) for one in samples])
    variances = np.array([np.var(one, ddof=1) / len(one) if len(one) > 1 else 0.0 for one in samples])
    best = int(np.argmin(means))
    return int((means - means[best] <= deviations * np.sqrt(variances + variances[best])).sum())


def reliability(claimed: ArrayLike, actual: ArrayLike, *, bins: int = 5) -> list[tuple[float, float, int]]:
    """(mean claim, mean of what came, how many) per bin of claims, of equal width in [0, 1]; empty bins are left out.

    `claimed` are probabilities; with `actual` 0 or 1 the second number is the share that happened.
    """
    told, came = _pair(claimed, actual)
    place = np.minimum((told * bins).astype(int), bins - 1)
    return [
        (float(told[place == b].mean()), float(came[place == b].mean()), int((place == b).sum()))
        for b in range(bins)
        if (place == b).any()
    ]


def risk_coverage(errors: ArrayLike, scores: ArrayLike) -> tuple[Array, Array, float]:
    """What is gained by leaving the riskiest unanswered (El-Yaniv and Wiener 2010): (coverage, risk, AURC).

    risk[k] is the mean error of the k + 1 rows of lowest score, coverage[k] their share; AURC is the mean risk over all
    coverages (Geifman et al. 2019). Rows of equal score are taken in random order, in expectation: a constant score has
    the mean error as risk everywhere.
    """
    error, score = _pair(errors, scores)
    _, tie = np.unique(score, return_inverse=True)
    order = np.argsort(tie, kind="stable")
    means = np.bincount(tie, error) / np.bincount(tie)
    taken = np.arange(1, error.size + 1)
    risk = np.cumsum(means[tie[order]]) / taken
    return taken / error.size, risk, float(risk.mean())


# ---- tests ----

Alternative = Literal["two-sided", "greater"]


def sign_flip_p(
    differences: ArrayLike, *, alternative: Alternative = "two-sided", resamples: int = 100_000, seed: int = 0
) -> float:
    """The sign-flip p-value of paired differences (Fisher 1935): H0 is symmetry about zero.

    p = share of sign patterns s in {-1, 1}^n with |sum(s_i d_i)| >= |sum(d_i)|, or without the bars for "greater": all
    2^n of them up to 20 pairs; beyond, (1 + hits) / (1 + resamples) of random patterns.
    """
    array = _array(differences, "differences")
    size = np.abs if alternative == "two-sided" else np.asarray
    # Sums that are equal on paper differ by rounding; a pattern that ties with the observed one must count.
    threshold = size(array.sum()) - 1e-12 * np.abs(array).sum()
    if array.size <= EXACT_PAIRS:
        sums = np.zeros(1)
        for value in array:
            sums = np.concatenate([sums + value, sums - value])
        return float(np.mean(size(sums) >= threshold))
    rng = np.random.default_rng(seed)
    hits, left = 0, resamples
    while left:
        rows = min(left, 4096)  # bounds the memory
        signs = rng.integers(0, 2, (rows, array.size)) * 2 - 1
        hits += int((size(signs @ array) >= threshold).sum())
        left -= rows
    return (1 + hits) / (1 + resamples)


def signed_ranks(differences: ArrayLike) -> Array:
    """rank(|d_i|) with the sign of d_i, ties sharing their mean rank: flipped in sign they make Wilcoxon's exact test
    (1945), which a few wild pairs cannot blind as they can the sum of the differences themselves."""
    array = _array(differences, "differences")
    return np.sign(array) * scipy.stats.rankdata(np.abs(array))


def walsh_averages(differences: ArrayLike) -> Array:
    """(d_i + d_j) / 2 for all i <= j, ascending. Their median is Hodges and Lehmann's estimate of the shift (1963)."""
    array = _array(differences, "differences")
    i, j = np.triu_indices(array.size)
    return np.sort((array[i] + array[j]) / 2)


def shift_bounds(differences: ArrayLike, *, alpha: float) -> tuple[float, float]:
    """The shifts that the exact signed-rank test does not reject at level alpha on either side; infinite where there
    are too few pairs to reject any.

    W+ (d - t) counts the Walsh averages above t (Tukey 1949), so with c the largest count with P(W+ <= c) <= alpha the
    bounds are the averages number c + 1 from below and from above.
    """
    averages = walsh_averages(differences)
    counts = np.ones(1)
    for rank in range(1, np.size(differences) + 1):  # of subsets of the ranks 1 .. n by their sum
        longer = np.zeros(counts.size + rank)
        longer[: counts.size] += counts
        longer[rank:] += counts
        counts = longer
    rejected = int((np.cumsum(counts) / counts.sum() <= alpha).sum())
    if not rejected:
        return -np.inf, np.inf
    return float(averages[rejected - 1]), float(averages[-rejected])


def holm(p_values: ArrayLike) -> Array:
    """Adjusted p-values (Holm 1979), in the order given: rejecting those <= alpha keeps the chance of any false
    rejection among them at alpha, whatever their dependence."""
    array = _array(p_values, "p-values")
    order = np.argsort(array, kind="stable")
    stepped = np.maximum.accumulate(array[order] * np.arange(array.size, 0, -1))
    adjusted = np.empty(array.size)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted
