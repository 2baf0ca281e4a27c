"""What a prior gets wrong on a space is learned from a few measurements, and better than without the prior."""

import itertools

import numpy as np
import pytest

from costmodel.correction import Correction
from costmodel.stats import spearman

GRID = np.array(list(itertools.product(range(8), range(6), range(4), range(3))), float)
FEATURES = (GRID - GRID.mean(axis=0)) / GRID.std(axis=0)
PRIOR = 0.5 * GRID[:, 0] - 0.3 * GRID[:, 1]
TRUTH = PRIOR + np.where(GRID[:, 2] > 1, 1.5, 0.0) + 0.2 * PRIOR * (GRID[:, 3] - 1)
EFFECTS = np.array([np.var(0.5 * np.arange(8)), np.var(0.3 * np.arange(6)), 0.0, 0.0])


@pytest.mark.parametrize("count", [12, 60, 550])
def test_the_rest_of_the_space_is_ranked_better_than_by_the_prior(count):
    rng = np.random.default_rng(count)
    order = rng.permutation(len(GRID))
    probes, rest = order[:count], order[count:]
    residual = TRUTH[probes] - PRIOR[probes]
    mean = residual.mean()
    learned = Correction(FEATURES[probes], PRIOR[probes], residual - mean, effects=EFFECTS, spread=PRIOR.std())
    told = PRIOR[rest] + mean + learned.predict(FEATURES[rest], PRIOR[rest])
    before = spearman(TRUTH[rest], PRIOR[rest])
    assert spearman(TRUTH[rest], told) > before
    if count >= 60:
        assert spearman(TRUTH[rest], told) > 1 - 0.5 * (1 - before)


def test_answers_do_not_depend_on_what_is_asked_beside():
    learned = Correction(FEATURES[:30], PRIOR[:30], TRUTH[:30] - PRIOR[:30], effects=EFFECTS, spread=1.0)
    whole = learned.predict(FEATURES, PRIOR)
    assert whole[100:110] == pytest.approx(learned.predict(FEATURES[100:110], PRIOR[100:110]))


def test_a_prior_that_says_nothing_leaves_the_parameters_as_they_are():
    flat = np.zeros(40)
    learned = Correction(FEATURES[:40], flat, TRUTH[:40] - TRUTH[:40].mean(), effects=np.zeros(4), spread=0.0)
    assert np.isfinite(learned.predict(FEATURES, np.zeros(len(FEATURES)))).all()
