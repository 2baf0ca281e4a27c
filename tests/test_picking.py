"""What the search believes and how it picks, on landscapes that can be worked out by hand."""

import itertools
import math

import numpy as np
import pytest

from costmodel.gaussian import MaternProcess
from costmodel.picking import Picker, coordinates, total_effects

GRID = np.array(list(itertools.product(range(6), range(5), range(3))), float)
FEATURES = (GRID - GRID.mean(axis=0)) / GRID.std(axis=0)
TRUTH = 0.8 * np.abs(GRID[:, 0] - 4) + 0.3 * np.abs(GRID[:, 1] - 1)  # the third parameter does nothing


def test_total_effects_are_the_variance_along_each_line():
    effects = total_effects(FEATURES, TRUTH)
    assert effects[0] == pytest.approx(np.var(0.8 * np.abs(np.arange(6) - 4)))
    assert effects[1] == pytest.approx(np.var(0.3 * np.abs(np.arange(5) - 1)))
    assert effects[2] == pytest.approx(0.0, abs=1e-12)
    interacting = np.where(GRID[:, 0] == 0, GRID[:, 2], 0.0)  # only one line in six varies along the third
    assert total_effects(FEATURES, interacting)[2] == pytest.approx(np.var([0, 1, 2]) / 6)


def test_coordinates_stretch_what_the_prior_says_matters_and_append_the_priors():
    seen = coordinates(FEATURES, np.stack([TRUTH, 2 * TRUTH + 7]))
    stretched = seen[:, :3].std(axis=0)
    assert stretched[0] > 2 * stretched[1] > 0
    assert stretched[2] == pytest.approx(0.05)
    assert seen[:, 3:].std(axis=0) == pytest.approx(1.0)
    assert seen[:, 3] == pytest.approx(seen[:, 4])  # scale and offset of a prior do not matter
    assert coordinates(FEATURES, np.zeros((0, len(FEATURES)))) is FEATURES


def test_believing_a_point_equals_fitting_with_it():
    """A point believed at its mean leaves every mean as it is and shrinks variances as a measurement would."""
    rng = np.random.default_rng(0)
    known = rng.permutation(len(FEATURES))[:12]
    process = MaternProcess()
    process.fit(FEATURES[known], TRUTH[known] - TRUTH[known].mean())
    believed = process.believer(FEATURES)
    before = believed.mean.copy()
    for index in (3, 40):
        believed.add(index)
    told = np.concatenate([FEATURES[known], FEATURES[[3, 40]]])
    target = np.concatenate([TRUTH[known] - TRUTH[known].mean(), before[[3, 40]]])
    again = MaternProcess()
    again._scale, again._noise, again._sd = process._scale, process._noise, process._sd
    again._x = told
    covariance = np.array([[_matern(math.dist(a, b) / process._scale) for b in told] for a in told])
    again._chol = np.linalg.cholesky(covariance + process._noise * np.eye(len(told)))
    again._alpha = np.linalg.solve(covariance + process._noise * np.eye(len(told)), target)
    mean, sd = again.predict(FEATURES)
    assert believed.mean == pytest.approx(mean, abs=1e-6)
    assert believed.sd() == pytest.approx(sd, rel=1e-5, abs=1e-6)


def _matern(r):
    return (1 + math.sqrt(5) * r + 5 * r * r / 3) * math.exp(-math.sqrt(5) * r)


def search(picker, budget):
    order = []
    while len(order) < budget:
        batch = picker.ask(min(8, budget - len(order)))
        for i in batch:
            picker.tell(i, float(TRUTH[i]))
        order += batch
    return order


def test_a_prior_that_is_right_in_order_but_not_in_scale_is_enough():
    noise = 0.6 * np.random.default_rng(1).standard_normal(len(TRUTH))
    order = search(Picker(FEATURES, (np.exp(TRUTH + noise))[None], seed=0), 24)
    assert TRUTH[order].min() == TRUTH.min()
    assert len(set(order)) == 24


def test_moves_without_the_model_come_when_nothing_better_is_found():
    """A reversed prior is overcome, guarded or not; after stale batches picks are neighbours of the best."""
    wrong = -TRUTH[None]
    for guarded in (True, False):
        order = search(Picker(FEATURES, wrong, guarded=guarded, seed=0), 64)
        assert TRUTH[order].min() == TRUTH.min()
    picker = Picker(FEATURES, wrong, seed=0)
    picker._stale, picker._best = 5, -1.0  # as after five batches that found nothing
    for i in picker.ask(8):
        picker.tell(i, 3.0 + TRUTH[i])
    best = min(picker._told, key=picker._told.get)
    moves = picker.ask(8)[:4]
    changed = [(FEATURES[i] != FEATURES[best]).sum() for i in moves]
    assert max(changed) == 1


def test_failures_are_told_and_their_neighbourhood_is_avoided():
    picker = Picker(FEATURES, TRUTH[None], seed=0)
    broken = {i for i in range(len(TRUTH)) if GRID[i, 0] == 4}
    order = []
    for _ in range(4):
        batch = picker.ask(8)
        for i in batch:
            picker.tell(i, None if i in broken else float(TRUTH[i]))
        order.append(batch)
    shares = [np.mean([i in broken for i in batch]) for batch in order]
    assert shares[0] > 0.5
    assert shares[-1] < 0.5
