"""The comparison of heads: rows that go on where a run stopped, figures that are what they are called."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from test_search import CANDIDATES, measurement, truth

from costmodel import ablation
from costmodel.ablation import STANDARD, Trial
from costmodel.cli.ablating import ablate
from costmodel.dataset import write_parquet
from costmodel.model import heads
from costmodel.recipe import Recipe
from costmodel.records import READOUTS, Prediction, UserError

torch.set_num_threads(1)


def space(*, problems):
    """Configs of one kernel on several problems; latency follows the config and the size."""
    rows = []
    for p in range(problems):
        for c in CANDIDATES[:40]:
            problem = replace(
                c.problem, params=(("n", 64 << p),), flops=c.problem.flops << p, bytes=c.problem.bytes << p
            )
            rows.append(measurement(replace(c, problem=problem), truth(c) * 2**p))
    return rows


TINY = Recipe(members=1, steps=4, reading_steps=0, rows=16, hidden_size=16, layers=1, vocab_size=600)


def test_standard_trials_are_known_heads_and_losses():
    for trial in STANDARD:
        heads.make(trial.head, 16, z=[-1.0, 0.0, 2.0], vocab_size=10, loss=trial.loss)
    assert {trial.head for trial in STANDARD} >= set(heads.NAMES)
    assert len({str(trial) for trial in STANDARD}) == len(STANDARD)


def test_a_trial_reads_itself():
    for text in ("p10", "grid:hard+raft"):
        assert str(Trial.of(text)) == text


def test_a_run_goes_on_with_what_is_left_and_its_rows_make_a_table(tmp_path):
    train, test = ablation.hold_out(space(problems=4), "problem")
    assert {m.variant.problem for m in train}.isdisjoint({m.variant.problem for m in test})
    trials = [Trial("grid"), Trial("pointwise", "squared")]
    run = ablation.ablate(train, test, trials=trials, seeds=range(2), recipe=TINY, done=[("grid", 0)])
    rows = [row for finished in run for row in finished]
    assert {(r["trial"], r["seed"]) for r in rows} == {("grid", 1), ("pointwise:squared", 0), ("pointwise:squared", 1)}
    assert {r["readout"] for r in rows} == set(READOUTS)
    frame = pd.DataFrame(rows)
    frame.to_csv(tmp_path / "rows.csv", index=False)
    again = ablation.read_rows(tmp_path / "rows.csv")
    summary = ablation.table(again)
    assert len(summary) == 2 * len(READOUTS)
    assert (summary["spearman"].diff().dropna() <= 0).all()
    assert ablation.markdown(summary).count("\n") == 2 + len(summary)
    ablation.figure(summary).savefig(tmp_path / "table.png")


def test_the_command_goes_on_with_the_same_run_alone(tmp_path):
    write_parquet(space(problems=4), tmp_path / "data")
    same = {"data": [tmp_path / "data"], "head": ["grid"], "seeds": 1, "steps": 2, "rows": 8, "jobs": 1,
            "out": tmp_path / "out"}  # fmt: skip
    ablate(**same, readout=["median"], as_json=True)
    assert ablation.read_rows(tmp_path / "out/rows.csv")["readout"].tolist() == ["median"]
    ablate(**same, as_json=True)  # all readouts: that of before is no more than one of them
    rows = ablation.read_rows(tmp_path / "out/rows.csv")
    assert sorted(rows["readout"]) == sorted(READOUTS)
    assert ablation.finished(rows, READOUTS) == {("grid", 0)}
    with pytest.raises(UserError, match=r"whose rows are of another run \(training rows, by, steps differ\)"):
        ablate(**{**same, "by": "config", "steps": 3, "rows": 8})


def test_the_table_tells_what_is_behind_from_what_is_not():
    rng = np.random.default_rng(0)
    luck = rng.normal(0, 0.1, 5)  # of a seed, shared by the trials
    means = {"a": 0.8, "b": 0.799, "c": 0.6}
    rows = [
        {"trial": name, "readout": "mean", "seed": s, **dict.fromkeys(ablation.FIGURES, 0.0),
         "spearman": mean + luck[s] + rng.normal(0, 0.01)}
        for name, mean in means.items() for s in range(5)
    ]  # fmt: skip
    summary = ablation.table(pd.DataFrame(rows)).set_index("trial")
    assert summary.loc["c", "behind"] > 0.15
    assert min(summary.loc["a", "behind"], summary.loc["b", "behind"]) == 0
    assert summary.loc["b", "behind"] < 0.02


def test_the_likelihood_is_that_of_a_density_over_log2_latency():
    m = replace(space(problems=1)[0], samples_us=(8.0,))
    edges = np.exp2(np.linspace(1, 5, 401))
    even = Prediction(tuple(edges), tuple(np.full(401, 1 / 401)))
    nll = ablation.negative_log_likelihood([m], [even])
    assert nll == pytest.approx(-math.log(0.99 / 4 + 0.01 / 40), rel=0.02)
    far = Prediction((1e6, 2e6), (0.5, 0.5))
    assert ablation.negative_log_likelihood([m], [far]) == pytest.approx(-math.log(0.01 / 40))
    no_scale = replace(far, scale_known=False)  # of one row: its factor sets it right
    assert ablation.negative_log_likelihood([m], [no_scale]) < 0.5


def test_by_config_holds_a_share_of_every_space_out():
    train, test = ablation.hold_out(space(problems=3), "config")
    assert {m.variant.problem for m in train} == {m.variant.problem for m in test}
    assert {m.variant for m in train}.isdisjoint({m.variant for m in test})


def test_user_mistakes_get_one_line():
    with pytest.raises(UserError, match="got readout 'best'"):
        list(ablation.ablate([], [], trials=[], seeds=[], recipe=TINY, readouts=["best"]))
    with pytest.raises(UserError, match="nothing that ran"):
        ablation.test_rows([])
