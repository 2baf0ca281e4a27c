"""Numeric heads on features: they learn what any regressor learns, and say how sure they are."""

import numpy as np
import pytest
import torch

from costmodel.model import heads
from costmodel.records import UserError
from costmodel.tabular import DIGITS, TabularRegressor

torch.set_num_threads(1)


def waves(rows, seed):
    rng = np.random.default_rng(seed)
    x = rng.uniform(-1, 1, (rows, 2))
    return x, 1000 * (np.sin(3 * x[:, 0]) + x[:, 1] ** 2) + 5000


@pytest.mark.parametrize("head", ["grid", "riemann", "pointwise", "mixture", "normalized"])
def test_it_learns_a_smooth_function_in_its_own_unit(head):
    model = TabularRegressor(head, steps=250, batch=64, learning_rate=4e-3, hidden_size=32, layers=1)
    model.fit(*waves(800, 0))
    x, y = waves(60, 1)
    told = model.predict(x, readout="median")
    assert np.corrcoef(told, y)[0, 1] > 0.95
    assert np.median(np.abs(told - y)) < 0.25 * y.std()


def test_y_equals_x_is_learned():
    """regress-lm, issue 57: on y = x the loss stuck and all predictions were the mean."""
    x = np.arange(200.0)[:, None]
    model = TabularRegressor("p10", steps=400, batch=64, hidden_size=32, layers=1).fit(x, x[:, 0])
    told = model.predict(x, readout="median")
    assert np.abs(told - x[:, 0]).mean() < 5


def test_noise_that_depends_on_the_features_is_told():
    rng = np.random.default_rng(0)
    x = rng.uniform(0, 1, (3000, 1))
    y = rng.normal(0, 0.1 + x[:, 0])
    model = TabularRegressor("grid", loss="hl-gauss", steps=300, hidden_size=32, layers=1).fit(x, y)
    told = model.distribution([[0.05], [0.95]])
    widths = (told.quantile(0.84) - told.quantile(0.16)) / 2
    assert widths[0].item() == pytest.approx(0.15, rel=0.4)
    assert widths[1].item() == pytest.approx(1.05, rel=0.25)


def test_equal_seeds_give_equal_models():
    x, y = waves(100, 0)
    first, second, other = (
        TabularRegressor("grid", steps=5, hidden_size=16, layers=1, seed=seed).fit(x, y).predict(x)
        for seed in (0, 0, 1)
    )
    assert np.array_equal(first, second)
    assert not np.array_equal(first, other)


def test_a_head_of_ones_own_making():
    x, y = waves(100, 0)
    model = TabularRegressor(lambda width, z: heads.make("mixture", width, z=z, vocab_size=8), steps=5).fit(x, y)
    assert model.head.components == 8


def test_every_digit_head_of_a_cost_model_has_its_signed_twin():
    assert set(DIGITS) == set(heads.DIGITS)


def test_user_mistakes_get_one_line():
    with pytest.raises(UserError, match=r"got 3 rows of features and y of shape \(2,\)"):
        TabularRegressor().fit(np.zeros((3, 1)), [1.0, 2.0])
    with pytest.raises(UserError, match="expected a finite"):
        TabularRegressor().fit([[float("nan")]], [1.0])
    with pytest.raises(UserError, match="got head 'nope'"):
        TabularRegressor("nope", steps=1).fit(np.zeros((3, 1)), [1.0, 2.0, 3.0])
