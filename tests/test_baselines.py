"""The opponents learn what they can learn, and all keep the CostModel protocol."""

import math

import numpy as np
import pytest
from contracts import CostModelContract
from test_search import CANDIDATES, DEVICE, measurement, truth

from costmodel import baselines
from costmodel.gaussian import MaternProcess
from costmodel.stats import spearman


def trained(model):
    model.update([measurement(v, truth(v)) for v in CANDIDATES[::2]])
    return model


class TestRoofline(CostModelContract):
    def make(self):
        return baselines.Roofline()

    def test_one_factor_is_learned_and_nothing_is_ranked(self):
        medians = [p.median_us for p in trained(baselines.Roofline()).predict(CANDIDATES, DEVICE)]
        assert max(medians) == pytest.approx(min(medians))
        assert medians[0] == pytest.approx(np.median([truth(v) for v in CANDIDATES[::2]]), rel=0.02)


class TestBoostedTrees(CostModelContract):
    def make(self):
        return baselines.BoostedTrees(seed=0, iterations=60)

    def test_held_out_configs_are_ranked(self):
        predictions = trained(baselines.BoostedTrees(seed=0)).predict(CANDIDATES[1::2], DEVICE)
        assert spearman([truth(v) for v in CANDIDATES[1::2]], [p.median_us for p in predictions]) > 0.7


class TestNearestNeighbour(CostModelContract):
    def make(self):
        return baselines.NearestNeighbour()

    def test_a_measured_variant_comes_back(self):
        model = baselines.NearestNeighbour(neighbours=1)
        model.update([measurement(v, truth(v)) for v in CANDIDATES])
        predicted = [p.median_us for p in model.predict(CANDIDATES, DEVICE)]
        assert predicted == pytest.approx([truth(v) for v in CANDIDATES], rel=0.01)


class TestGaussianProcess(CostModelContract):
    def make(self):
        return baselines.GaussianProcess()

    def test_held_out_configs_are_ranked_and_the_spread_is_honest(self):
        predictions = trained(baselines.GaussianProcess()).predict(CANDIDATES[1::2], DEVICE)
        true = [truth(v) for v in CANDIDATES[1::2]]
        assert spearman(true, [p.median_us for p in predictions]) > 0.9
        inside = [p.quantile_us(0.01) <= t <= p.quantile_us(0.99) for p, t in zip(predictions, true, strict=True)]
        assert np.mean(inside) > 0.8


def test_the_process_interpolates_a_smooth_function():
    x = np.linspace(-1.5, 1.5, 25)[:, None]
    process = MaternProcess()
    process.fit(x[::2], np.sin(2 * x[::2, 0]))
    mean, sd = process.predict(x[1::2])
    assert np.abs(mean - np.sin(2 * x[1::2, 0])).max() < 0.05
    far, far_sd = process.predict(np.array([[40.0]]))
    assert abs(far[0]) < 0.01
    assert far_sd[0] > 5 * sd.max()


def test_joint_draws_have_the_stated_spread():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((12, 2))
    process = MaternProcess()
    process.fit(x, x[:, 0])
    asked = rng.standard_normal((5, 2))
    mean, sd = process.predict(asked)
    draws = process.sample(asked, 4000, rng)
    assert draws.mean(axis=0) == pytest.approx(mean, abs=4 * sd.max() / math.sqrt(4000) + 1e-3)
    assert draws.std(axis=0) == pytest.approx(sd, rel=0.1, abs=5e-3)
