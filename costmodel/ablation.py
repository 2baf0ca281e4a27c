"""The comparison of numeric heads: every head, loss and readout on the same rows, over several seeds.

    for row in ablate(train, test, trials=[Trial("grid"), Trial("p10", "ce+raft")], seeds=range(5), recipe=Recipe()):
        ...

Each trial is one network, trained by the same recipe on the same token ids; what differs is the head and its loss. The
table and the pictures are made from the rows alone, so a run that was killed goes on from those it wrote.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
from joblib import Parallel, delayed
from matplotlib.figure import Figure

from costmodel import reading, stats, uncertainty
from costmodel.dataset import By, groups, space_key, split
from costmodel.evaluate import evaluate, predict_all
from costmodel.examples import shards_of
from costmodel.predictor import NeuralCostModel
from costmodel.recipe import Recipe, train_members
from costmodel.records import READOUTS, Measurement, Prediction, UserError, check_readout
from costmodel.shards import Shards

HELD_OUT = 0.25
TEST_CONFIGS = 48  # of a space: enough for a rank correlation
NLL_WINDOW = 0.1  # log2 units: narrower than that, a density says how a grid was cut, and no more about latency
NLL_DOUBT, NLL_RANGE = 0.01, 40.0  # share of a uniform density over so many log2 units, so that no miss costs infinity
FIGURES = ("spearman", "kendall", "median_ape", "mape", "top10", "nll", "coverage90", "train_cpu_s", "predict_cpu_s")


@dataclass(frozen=True, slots=True)
class Trial:
    """A head by name and its loss; None is the head's own."""

    head: str
    loss: str | None = None

    @staticmethod
    def of(text: str) -> Trial:
        """ "p10" or "p10:ce+raft"."""
        head, _, loss = text.partition(":")
        return Trial(head, loss or None)

    def __str__(self) -> str:
        return f"{self.head}:{self.loss}" if self.loss else self.head


STANDARD = tuple(
    Trial.of(text)
    for text in (
        "grid", "grid:hl-gauss+raft", "grid:hl-gauss", "grid:two-hot", "grid:hard", "grid:raft", "grid:sampled",
        "grid:hl-gauss+raft-relative", "grid:hl-gauss+raft+listwise", "learned-grid:raft", "riemann", "p10",
        "p10-merged", "p10-exponent-first", "ieee", "normalized", "normalized-thrice", "fixed-point",
        "normalized:ce+raft", "mixture:nll", "mixture", "pointwise:squared", "pointwise", "pooled-mean:squared",
        "pooled-min:squared", "pooled-max:squared", "final-logit:squared", "logits-mlp:squared",
        "logits-projection:squared",
    )
)  # fmt: skip


def ablate(
    train: Sequence[Measurement],
    test: Sequence[Measurement],
    *,
    trials: Sequence[Trial],
    seeds: Iterable[int],
    recipe: Recipe,
    readouts: Sequence[str] = READOUTS,
    done: Iterable[tuple[str, int]] = (),
    jobs: int = 1,
) -> Iterator[list[dict[str, Any]]]:
    """The rows of one trial and seed at a time, one for each readout, as they are finished; those `done` are left out.

    Tested on at most TEST_CONFIGS configs of each space that ran. A figure is the mean over spaces. Times are of one
    thread's processor.
    """
    for readout in readouts:
        check_readout(readout)
    finished = set(done)
    left = [(trial, seed) for seed in seeds for trial in trials if (str(trial), seed) not in finished]
    if not left:
        return
    chosen = test_rows(test)
    shards = shards_of(train, recipe)
    work = (
        delayed(_run)(trial, replace(recipe, members=1, seed=seed, head=trial.head, loss=trial.loss), shards, chosen,
                      readouts)
        for trial, seed in left
    )  # fmt: skip
    yield from Parallel(n_jobs=jobs, return_as="generator_unordered")(work)


def hold_out(measurements: Sequence[Measurement], by: str) -> tuple[list[Measurement], list[Measurement]]:
    """Training and test rows: a quarter held out by "problem", "kernel", "form" or "device" (see `dataset.split`), or,
    by "config", a quarter of the configs of every space."""
    if by != "config":
        parts = split(measurements, by=cast("By", by), fraction=HELD_OUT, seed=0)  # which refuses what it does not know
        return list(parts.train), list(parts.test)
    train: list[Measurement] = []
    test: list[Measurement] = []
    for space in groups(measurements):
        held = np.random.default_rng(0).random(len(space.measurements)) < HELD_OUT
        for m, out in zip(space.measurements, held, strict=True):
            (test if out else train).append(m)
    return train, test


def test_rows(measurements: Iterable[Measurement]) -> list[Measurement]:
    """At most TEST_CONFIGS that ran of each space, the same ones whatever else is there."""
    kept = []
    for space in groups(m for m in measurements if m.status == "ok"):
        rows = sorted(space.measurements, key=lambda m: m.variant.config.params)
        order = np.random.default_rng(0).permutation(len(rows))[:TEST_CONFIGS]
        kept += [rows[i] for i in sorted(order)]
    if not kept:
        raise UserError("got nothing that ran to test on, expected some measurements that are ok")
    return kept


def _run(
    trial: Trial, recipe: Recipe, shards: Shards, test: Sequence[Measurement], readouts: Sequence[str]
) -> list[dict[str, Any]]:
    torch.set_num_threads(1)
    started = time.process_time()
    members, _ = train_members(shards, recipe)
    trained = time.process_time()
    model = NeuralCostModel(members, shards.tokenizer, shards.details)
    predictions = predict_all(model, test)
    times = {"train_cpu_s": trained - started, "predict_cpu_s": time.process_time() - trained}
    same = {"trial": str(trial), "head": trial.head, "loss": trial.loss or "", "seed": recipe.seed, **times}
    nll = negative_log_likelihood(test, predictions)
    return [{**same, "readout": readout, "nll": nll, **_figures(test, predictions, readout)} for readout in readouts]


def _figures(test: Sequence[Measurement], predictions: Sequence[Prediction], readout: str) -> dict[str, float]:
    table = evaluate(test, predictions, by="space", readout=readout).iloc[:-1]
    ranked = table[["spearman", "kendall"]].fillna(0.0)  # a constant ranks nothing
    rest = table[["median_ape", "mape", "mape_scaled", "top1", "top10", "coverage90"]].mean()
    return {**ranked.mean().to_dict(), **rest.to_dict()}


def negative_log_likelihood(test: Sequence[Measurement], predictions: Sequence[Prediction]) -> float:
    """Mean over rows, in nats, of the density over log2 latency within NLL_WINDOW of the truth. Where a space has no
    scale, after the factor that sets its medians right."""
    true = np.log2([m.latency_us for m in test])
    told = uncertainty.at_best_scale(true, np.log2([p.median_us for p in predictions]), predictions,
                                     [space_key(m) for m in test])  # fmt: skip
    total = 0.0
    for middle, p in zip(told.tolist(), predictions, strict=True):
        low, high = 2 ** (middle - NLL_WINDOW / 2), 2 ** (middle + NLL_WINDOW / 2)
        density = (p.probability_below(high) - p.probability_below(low)) / NLL_WINDOW
        total -= np.log((1 - NLL_DOUBT) * density + NLL_DOUBT / NLL_RANGE)
    return total / len(test)


# ---- what is made of the rows


def table(rows: pd.DataFrame) -> pd.DataFrame:
    """Per trial and readout: the mean of every figure over seeds, best rank first, a 95 % bootstrap interval of
    `spearman` over seeds, and whether the best trial is better on the same seeds (`behind`: the least lead of the best
    that those seeds allow at 95 %, above 0 where it is)."""
    means = rows.groupby(["trial", "readout"], sort=False)[list(FIGURES)].mean()
    means.insert(0, "seeds", rows.groupby(["trial", "readout"], sort=False)["seed"].nunique())
    by_seed = rows.pivot_table(index=["trial", "readout"], columns="seed", values="spearman")
    best = means["spearman"].idxmax()
    for key in means.index:
        own = by_seed.loc[key]
        means.loc[key, ["low", "high"]] = _interval(own.dropna())
        lead = (by_seed.loc[best] - own).dropna()
        means.loc[key, "behind"] = 0.0 if key == best else max(0.0, _interval(lead)[0])
    return means.sort_values("spearman", ascending=False).reset_index()


def _interval(values: pd.Series) -> tuple[float, float]:
    return stats.bootstrap_interval(values.to_numpy(), np.mean, seed=0)


def markdown(summary: pd.DataFrame) -> str:
    """The table, for a page."""
    heads = ["head : loss", "readout", "Spearman", "95 %", "Kendall", "median APE", "top 10", "NLL", "coverage of 90 %",
             "training CPU-s"]  # fmt: skip
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for row in summary.to_dict("records"):
        cells = [
            f"`{row['trial']}`", row["readout"], f"{row['spearman']:.3f}", f"{row['low']:.3f}-{row['high']:.3f}",
            f"{row['kendall']:.3f}", _percent(row["median_ape"]), f"{row['top10']:.3f}", f"{row['nll']:.2f}",
            _percent(row["coverage90"]), f"{row['train_cpu_s']:.0f}",
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _percent(share: float) -> str:
    return "-" if np.isnan(share) else f"{share:.1%}".replace("%", " %")


def figure(summary: pd.DataFrame) -> Figure:
    """Each trial by its best readout: rank correlation with its interval, median APE, and what it costs to train."""
    best = summary.loc[summary.groupby("trial")["spearman"].idxmax()].sort_values("spearman")
    picture = Figure(figsize=(11, 1.2 + 0.26 * len(best)), layout="constrained")
    left, middle, right = picture.subplots(1, 3, width_ratios=[3, 1.5, 1.5], sharey=True)
    places = np.arange(len(best))
    spread = np.abs(best[["low", "high"]].to_numpy().T - best["spearman"].to_numpy())
    tied = best["behind"].to_numpy() == 0
    for chosen, colour, label in ((tied, "#1b6ca8", "not behind the best"), (~tied, "#999999", "behind the best")):
        if chosen.any():
            left.errorbar(best["spearman"][chosen], places[chosen], xerr=spread[:, chosen], fmt="o", color=colour,
                          capsize=2, label=label)  # fmt: skip
            middle.plot(best["median_ape"][chosen], places[chosen], "o", color=colour)
            right.plot(best["train_cpu_s"][chosen], places[chosen], "o", color=colour)
    left.set_yticks(places, [f"{t}  ({r})" for t, r in zip(best["trial"], best["readout"], strict=True)], fontsize=8)
    left.legend(fontsize=8, loc="upper left")
    headings = ("Spearman, mean over spaces (95 % over seeds)", "median APE", "CPU-seconds of training")
    for axes, heading in zip((left, middle, right), headings, strict=True):
        axes.set_xlabel(heading)
        axes.grid(axis="x", alpha=0.3)
    return picture


# ---- what goes on where it was


def read_rows(path: Path) -> pd.DataFrame:
    """Rows as `costmodel ablate` writes them; none where there is no file yet."""
    return pd.read_csv(path, keep_default_na=False, na_values=["nan"]) if path.exists() else pd.DataFrame()


def finished(rows: pd.DataFrame, readouts: Sequence[str]) -> set[tuple[str, int]]:
    """The trials and seeds of which `rows` has all readouts."""
    told: dict[tuple[str, int], set[str]] = {}
    for row in rows.to_dict("records"):
        told.setdefault((row["trial"], row["seed"]), set()).add(row["readout"])
    return {key for key, names in told.items() if names.issuperset(readouts)}


def check_same_run(folder: Path, settings: dict[str, Any]) -> None:
    """UserError where the rows in `folder` are of other data or another recipe. JSON-able settings, kept there."""
    path = folder / "settings.json"
    if path.exists():
        before = reading.json_object(path, expected="the settings of a run of `costmodel ablate`")
        if other := [name for name, value in settings.items() if before.get(name) != value]:
            raise UserError(
                f"got --out {folder}, whose rows are of another run ({', '.join(other)} differ), expected one of this "
                "data and recipe; give another folder"
            )
    path.write_text(json.dumps(settings))
