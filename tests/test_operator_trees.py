"""Boosted trees on operators: the protocol, what they carry from GPU to GPU, and what they fall back on."""

import math

import numpy as np
import pytest
from contracts import CostModelContract
from test_floor import product, rows

from costmodel.devices import find
from costmodel.floor import estimate_us, floor_us
from costmodel.operator_trees import OperatorTrees, operator_features
from costmodel.records import Config, Kernel, Measurement, Timing, Variant


def variant(problem):
    return Variant(Kernel(problem.op, "operator", None, (), "torch"), problem, Config(()))


def measured(problem, device, latency_us):
    return Measurement(variant(problem), device, Timing(), (), "ok", (latency_us,))


def truth(problem, device):
    """A made-up library: a launch of 20 us, and products and rows at 60 % of what the floor allows."""
    return 20 + floor_us(problem, device) / 0.6


def problems(seed, count):
    rng = np.random.default_rng(seed)
    return [
        *(product(*(int(x) for x in rng.integers(1, 800, 4))) for _ in range(count)),
        *(rows("ln", int(b), int(h) * 4) for b, h in rng.integers((1000, 100), (20000, 1000), (count, 2))),
    ]


class TestOperatorTrees(CostModelContract):
    def make(self):
        return OperatorTrees(seed=0, iterations=20)

    def test_what_was_learned_on_some_gpus_holds_on_another(self):
        model = OperatorTrees(seed=0, iterations=60)
        for name in ("T4", "P100", "A100"):
            model.update([measured(p, find(name), truth(p, find(name))) for p in problems(0, 250)])
        device = find("V100")
        asked = problems(1, 60)
        told = [p.median_us for p in model.predict([variant(p) for p in asked], device)]
        off = [abs(math.log2(t / truth(p, device))) for t, p in zip(told, asked, strict=True)]
        plain = [abs(math.log2(floor_us(p, device) / truth(p, device))) for p in asked]
        assert np.mean(off) < 0.25 * np.mean(plain)


def test_a_class_that_was_never_measured_gets_the_estimate():
    model, device = OperatorTrees(seed=0), find("L4")
    model.update([measured(rows("ln", 4096, 1024), find("T4"), 100.0)])
    (told,) = model.predict([variant(product(4, 512, 512, 512))], device)
    assert told.median_us == pytest.approx(estimate_us(product(4, 512, 512, 512), device), rel=0.05)


def test_ratios_that_name_a_device_are_no_features():
    for asked in (rows("ln", 4096, 4096), product(64, 128, 128, 128)):
        features = operator_features(asked, find("T4"))
        assert not {"rows_over_l2", "power_us_share", "compute_us_share"} & set(features)
        assert all(math.isfinite(value) for value in features.values())
