"""The network behind the CostModel protocol: a tiny model trained here, and the shipped one."""

import dataclasses
import math
from functools import cache

import numpy as np
import pytest
from contracts import CostModelContract
from test_search import CANDIDATES, DEVICE, KERNEL, PROBLEM, measurement, truth

from costmodel import devices, workloads
from costmodel.examples import fit
from costmodel.familiarity import Familiarity
from costmodel.floor import estimate_us
from costmodel.predictor import NeuralCostModel
from costmodel.recipe import Recipe
from costmodel.records import Config, Kernel, Problem, TensorSpec, UserError, Variant
from costmodel.stats import spearman

TINY = Recipe(members=2, steps=300, reading_steps=5, rows=64, hidden_size=32, layers=2, vocab_size=512)
SOURCE = """
extern "C" void run(void* const* buffers, const long long* sizes) {
    for (long long i = 0; i < sizes[0]; i += A) add(buffers, i, B, C);
}
"""
TEXT_KERNEL = Kernel("toy", "cpp", SOURCE, KERNEL.schema)


def on_text(variant, problem=PROBLEM):
    return dataclasses.replace(variant, kernel=TEXT_KERNEL, problem=problem)


TRAINING = [
    dataclasses.replace(
        measurement(v, None if v.config["A"] == 32 and v.config["C"] == 2 else truth(v)), variant=on_text(v)
    )
    for v in CANDIDATES
]


@cache
def trained():
    return fit(TRAINING, TINY)[0]


def fresh():
    """The same weights without what other tests taught it."""
    model = trained()
    return NeuralCostModel(model.members, model.tokenizer, model.details)


class TestTinyModel(CostModelContract):
    def make(self):
        return fresh()


class TestShippedModel(CostModelContract):
    def make(self):
        return NeuralCostModel.from_pretrained()


def test_it_learns_its_training_space():
    ok = [m for m in TRAINING if m.status == "ok"]
    predictions = fresh().predict([m.variant for m in ok], DEVICE)
    assert spearman([m.latency_us for m in ok], [p.median_us for p in predictions]) > 0.8
    failing = [m.variant for m in TRAINING if m.status != "ok"]
    p_fail = [p.p_fail for p in fresh().predict(failing, DEVICE)]
    assert np.mean(p_fail) > 2 * np.mean([p.p_fail for p in predictions])


def test_a_saved_model_answers_alike(tmp_path):
    fresh().save_pretrained(tmp_path)
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {path.name for path in tmp_path.iterdir()}
    variants = [m.variant for m in TRAINING[:20]]
    before = [p.median_us for p in fresh().predict(variants, DEVICE)]
    after = [p.median_us for p in NeuralCostModel.from_pretrained(tmp_path).predict(variants, DEVICE)]
    assert after == pytest.approx(before, rel=0.05)  # weights are stored in bfloat16


def test_an_ensemble_is_the_mixture_of_its_members():
    model = fresh()
    variants = [m.variant for m in TRAINING[:8]]
    single = [
        NeuralCostModel([member], model.tokenizer, model.details).predict(variants, DEVICE) for member in model.members
    ]
    both = model.predict(variants, DEVICE)
    for i, p in enumerate(both):
        below = np.mean([one[i].probability_below(p.median_us) for one in single])
        assert below == pytest.approx(0.5, abs=0.05)


def test_a_few_probes_fix_the_scale_elsewhere_too():
    """Two measurements that are 8 times slower than predicted move the whole space, and the kernel's other problems."""
    model = fresh()
    variants = [m.variant for m in TRAINING[:20]]
    other = [
        on_text(v, Problem("toy", (TensorSpec((128,), "f32"),), (("n", 128),), 2 * 10**6, 2 * 10**6)) for v in variants
    ]
    before, before_other = (np.array([p.median_us for p in model.predict(vs, DEVICE)]) for vs in (variants, other))
    model.update([measurement(v, 8 * us) for v, us in zip(variants[:2], before[:2], strict=True)])
    after, after_other = (np.array([p.median_us for p in model.predict(vs, DEVICE)]) for vs in (variants, other))
    assert np.log2(after / before).mean() == pytest.approx(3.0, abs=0.7)
    assert np.log2(after_other / before_other).mean() == pytest.approx(2.0, abs=0.7)


def test_what_a_model_was_told_is_saved_with_it(tmp_path):
    model = fresh()
    variants = [m.variant for m in TRAINING[:40]]
    before = np.array([p.median_us for p in model.predict(variants, DEVICE)])
    model.update([measurement(v, 5 * us) for v, us in zip(variants[:10], before[:10], strict=True)])
    told = [p.median_us for p in model.predict(variants, DEVICE)]
    model.save_pretrained(tmp_path)
    again = NeuralCostModel.from_pretrained(tmp_path).predict(variants, DEVICE)
    assert [p.median_us for p in again] == pytest.approx(told, rel=0.05)
    assert "corrected by 10 measured here" in again[0].reason
    assert again[0].trust


def test_without_a_floor_only_the_order_is_known_until_something_is_measured():
    model = fresh()
    unstated = dataclasses.replace(PROBLEM, flops=0, bytes=0)
    variants = [on_text(m.variant, unstated) for m in TRAINING[:20]]
    before = model.predict(variants, DEVICE)
    assert not any(p.scale_known for p in before)
    assert "only the order" in before[0].reason
    model.update([measurement(variants[3], 77.0)])
    after = model.predict(variants, DEVICE)
    assert all(p.scale_known for p in after)
    assert after[3].median_us == pytest.approx(77.0, rel=1e-3)
    ratios = np.array([a.median_us / b.median_us for a, b in zip(after, before, strict=True)])
    assert ratios == pytest.approx(ratios[0], rel=1e-6)


def test_the_network_is_believed_less_of_operators_on_a_device_it_never_saw():
    model = fresh()
    operator = Kernel("add", "operator", None, (), origin="torch")
    problems = [Problem("add", (), (("B", 2**i), ("H", 512)), 2**i * 512, 12 * 2**i * 512) for i in range(10, 16)]
    variants = [Variant(operator, problem, Config(())) for problem in problems]
    h100 = devices.find("H100 SXM")
    expected = np.log2([estimate_us(problem, h100) for problem in problems])
    unseen = np.log2([p.median_us for p in model.predict(variants, h100)]) - expected
    known = dataclasses.replace(model.familiarity, devices=frozenset({h100.name}))
    model.familiarity = known
    seen = np.log2([p.median_us for p in model.predict(variants, h100)]) - expected
    assert np.abs(unseen).mean() < 0.6 * np.abs(seen).mean()


def several_spaces(count, rng, *, error_sd=0.8, **changed):
    """Measurements of `count` problems, 12 rows each, off the model's medians by an error that they share in part."""
    rows = []
    for i in range(count):
        size = 1000 + 100 * i
        problem = Problem("toy", (TensorSpec((size,), "f32"),), (("n", size),), 2 * 10**6, 2 * 10**6)
        variants = [dataclasses.replace(on_text(v, problem), **changed) for v in CANDIDATES[i % 7 :: 9]]
        shared = rng.normal(0, error_sd)
        for v, p in zip(variants, fresh().predict(variants, DEVICE), strict=True):
            rows.append(measurement(v, p.median_us * 2 ** (shared + rng.normal(0, error_sd))))
    return rows


def covered(model, rows):
    told = model.predict([m.variant for m in rows], DEVICE)
    return np.mean(
        [p.quantile_us(0.05) <= m.latency_us <= p.quantile_us(0.95) for p, m in zip(told, rows, strict=True)]
    )


def test_calibrated_intervals_cover_new_spaces_and_are_kept(tmp_path):
    rng = np.random.default_rng(0)
    model, rows = fresh(), several_spaces(60, rng)
    fit_on, new = rows[: len(rows) // 2], rows[len(rows) // 2 :]
    before = covered(model, new)
    table = model.calibrate(fit_on).set_index("kind")
    assert table.loc["trusted", "spaces"] == 30
    assert table.loc["untrusted", "spaces"] == 0
    assert abs(covered(model, new) - 0.9) < 0.08 < abs(before - 0.9)
    medians = [p.median_us for p in fresh().predict([m.variant for m in new[:5]], DEVICE)]
    told = model.predict([m.variant for m in new[:5]], DEVICE)
    assert [p.median_us for p in told] == pytest.approx(medians, rel=0.05)  # cells are even in us, and now wider
    model.save_pretrained(tmp_path)
    again = NeuralCostModel.from_pretrained(tmp_path)
    assert again.details["spread"] == model.details["spread"]
    kept = [p.quantile_us(0.95) for p in again.predict([m.variant for m in new[:5]], DEVICE)]
    assert kept == pytest.approx([p.quantile_us(0.95) for p in told], rel=0.1)  # weights are stored in bfloat16
    assert model.calibrate(fit_on).set_index("kind").loc["trusted"].equals(table.loc["trusted"])  # not on top of itself


def test_too_few_spaces_are_said_not_hidden():
    model, rng = fresh(), np.random.default_rng(1)
    with pytest.raises(
        UserError, match=r"8 trusted and 0 untrusted spaces, expected at least 9 of a kind for alpha=0\.1"
    ):
        model.calibrate(several_spaces(8, rng))
    strange = Kernel("strange", "cpp", "int strange() { return sizeof(nothing) / entirely::known[7]; }", KERNEL.schema)
    untrusted = several_spaces(4, rng, kernel=strange)
    model.calibrate([*several_spaces(12, rng), *untrusted])
    assert model.details["spread"]["untrusted"] is None
    (told,) = model.predict([untrusted[0].variant], DEVICE)
    assert "its interval is not calibrated" in told.reason
    assert told.quantile_us(0.95) == fresh().predict([untrusted[0].variant], DEVICE)[0].quantile_us(0.95)


def test_calibration_for_a_device_weighs_spaces_by_their_devices():
    rng = np.random.default_rng(2)
    rows = several_spaces(30, rng)
    alike, far = fresh(), fresh()
    plain = fresh().calibrate(rows).set_index("kind").loc["trusted", "factor"]
    same = alike.calibrate(rows, device=DEVICE).set_index("kind").loc["trusted", "factor"]
    assert same == plain  # every space is of that device
    far.calibrate(rows)
    before = far.predict([rows[0].variant], DEVICE)
    with pytest.raises(UserError, match="of a kind near the device"):
        far.calibrate(rows, device=devices.find("H100 SXM"))
    assert far.predict([rows[0].variant], DEVICE) == before  # what failed undoes nothing


def test_calibration_takes_nothing_that_the_model_was_told():
    model = fresh()
    rows = several_spaces(10, np.random.default_rng(3))
    model.update(rows[:2])
    with pytest.raises(UserError, match="got 2 measurements that `update` was told"):
        model.calibrate(rows)


def test_rank_puts_likely_failures_last():
    model = fresh()
    ranked = model.rank([m.variant for m in TRAINING], DEVICE)
    predictions = model.predict(ranked, DEVICE)
    kept = [p.median_us for p in predictions if p.p_fail <= 0.5]
    assert kept == sorted(kept)
    assert [p.p_fail > 0.5 for p in predictions] == sorted(p.p_fail > 0.5 for p in predictions)


def test_predictions_as_a_table():
    frame = fresh().predict_frame([m.variant for m in TRAINING[:5]], DEVICE)
    assert list(frame["A"]) == [m.variant.config["A"] for m in TRAINING[:5]]
    assert (frame["q05_us"] <= frame["median_us"]).all()


def test_trust_is_for_what_was_read():
    model = fresh()
    seen = model.predict([on_text(CANDIDATES[0])], DEVICE)[0]
    assert seen.trust
    assert "in training" in seen.reason
    foreign = Kernel("alien", "cpp", "int main() { return other(things, entirely) ? 4 : 5; }", KERNEL.schema)
    unseen = model.predict([dataclasses.replace(CANDIDATES[0], kernel=foreign)], DEVICE)[0]
    assert not unseen.trust
    assert "only" in unseen.reason
    huge = Problem("toy", PROBLEM.inputs, (("n", 64),), 10**12, 10**12)
    assert "outside the trained" in model.predict([on_text(CANDIDATES[0], huge)], DEVICE)[0].reason


def test_comments_and_layout_do_not_change_familiarity_or_predictions():
    changed = dataclasses.replace(TEXT_KERNEL, source="// a comment\n" + SOURCE.replace("\n    ", "\n          "))
    known = Familiarity.of(TRAINING)
    assert known.seen_share(changed) == 1.0
    assert Familiarity.from_json(known.as_json()) == known
    variant = on_text(CANDIDATES[3])
    a, b = fresh().predict([variant, dataclasses.replace(variant, kernel=changed)], DEVICE)
    assert a.median_us == pytest.approx(b.median_us, rel=1e-5)


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"expected the config\.json of a model folder"):
        NeuralCostModel.from_pretrained(tmp_path)


def test_the_shipped_model_knows_its_kernels():
    """On a problem size nobody measured it predicts within reason and trusts itself; it covers every shipped kernel."""
    model, device = NeuralCostModel.from_pretrained(), devices.find("H100 SXM")
    assert model.familiarity is not None
    for name in workloads.names("cpp"):
        workload = workloads.load(name)
        assert (
            workload.kernel.identity in model.familiarity.kernels
            or name.partition("__")[0] in model.details["held_out"]
        )
    matmul = workloads.load("matmul")
    variant = Variant(matmul.kernel, matmul.make_problem(M=300, N=300, K=300), matmul.default)
    foreign = model.predict([variant], device)[0]
    assert not foreign.trust
    assert "no training data from" in foreign.reason
    assert math.isfinite(foreign.median_us)
