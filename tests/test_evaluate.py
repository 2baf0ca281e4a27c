"""Accuracy tables from predictions whose faults are known."""

import numpy as np
import pytest
from test_search import CANDIDATES, DEVICE, measurement, truth

from costmodel import evaluate
from costmodel.baselines import log_normal
from costmodel.records import Config, Kernel, Problem, UserError, Variant

OK = [measurement(v, truth(v)) for v in CANDIDATES]


def test_perfect_predictions():
    table = evaluate.evaluate(OK, [log_normal(np.log2(truth(v)), 0.01) for v in CANDIDATES])
    row = table[table["group"] == "toy"].iloc[0]
    assert row["n"] == len(OK)
    assert (row["spearman"], row["top1"], row["top10"]) == (pytest.approx(1.0, abs=1e-3), 1.0, 1.0)
    assert row["mape"] == pytest.approx(0.0, abs=0.01)
    assert row["coverage90"] == 1.0


def test_a_wrong_scale_hurts_the_error_but_not_the_ranks():
    row = evaluate.evaluate_points(OK, np.array([3 * truth(v) for v in CANDIDATES])).iloc[0]
    assert row["spearman"] == pytest.approx(1.0)
    assert row["mape"] == pytest.approx(2.0)
    assert row["median_ape"] == pytest.approx(2.0)
    assert row["mape_scaled"] == pytest.approx(0.0, abs=1e-6)


def test_reversed_ranks_pick_the_worst():
    row = evaluate.evaluate_points(OK, np.array([1 / truth(v) for v in CANDIDATES])).iloc[0]
    assert row["spearman"] == pytest.approx(-1.0)
    assert row["top1"] == pytest.approx(min(map(truth, CANDIDATES)) / max(map(truth, CANDIDATES)))


def test_failures_are_left_out_and_the_mean_is_last():
    table = evaluate.evaluate_points([*OK, measurement(CANDIDATES[0], None)], np.ones(len(OK) + 1), by="problem")
    assert table["n"].tolist() == [len(OK), len(OK)]
    assert table["group"].tolist()[-1] == "mean"


def test_unknown_grouping_names_the_known_ones():
    with pytest.raises(UserError, match="kernel, problem, device, space"):
        evaluate.evaluate_points(OK, np.ones(len(OK)), by="colour")


def test_predictions_are_asked_device_by_device():
    class Echo:
        def predict(self, variants, device):
            assert device == DEVICE
            return [log_normal(np.log2(truth(v)), 0.1) for v in variants]

    medians = [p.median_us for p in evaluate.predict_all(Echo(), OK)]
    assert medians == pytest.approx([truth(v) for v in CANDIDATES], rel=1e-4)
    assert evaluate.average([[log_normal(1.0, 0.1)], [log_normal(3.0, 0.1)]])[0] == pytest.approx(4.0, rel=1e-4)


def test_an_unknown_scale_leaves_only_what_needs_none():
    told = [log_normal(np.log2(7 * truth(v)), 0.2, scale_known=False) for v in CANDIDATES]
    row = evaluate.evaluate(OK, told).iloc[0]
    assert np.isnan(row["mape"])
    assert np.isnan(row["median_ape"])
    assert row["mape_scaled"] == pytest.approx(0.0, abs=0.02)
    assert row["coverage90"] == 1.0  # after the one factor; without it none would be inside
    known = evaluate.evaluate(OK, [log_normal(np.log2(7 * truth(v)), 0.2) for v in CANDIDATES]).iloc[0]
    assert known["mape"] == pytest.approx(6.0, rel=0.05)
    assert known["coverage90"] == 0.0


def test_rows_of_an_operator_are_compared_on_their_device():
    operator = Kernel("bmm", "operator", None)
    rows = [
        measurement(Variant(operator, Problem("bmm", (), (("M", size),), size, size), Config(())), float(size))
        for size in range(1, 20)
    ]
    row = evaluate.evaluate_points(rows, np.arange(1.0, 20.0), by="device").iloc[0]
    assert (row["group"], row["n"], row["spearman"]) == (DEVICE.name, 19, pytest.approx(1.0))
