"""Do intervals cover what they claim, does abstaining help, and what are frozen embeddings worth?

    python benchmarks/uncertainty.py --figures docs/figures                  # the shipped model on what it never saw
    python benchmarks/uncertainty.py RECORDS/*.json.gz --figures FOLDER      # and GPUs that were left out

Shipped model: the two test sets of `heldout.py`. Its spaces are halved at random, 20 times; one half calibrates, the
other is judged, every space of equal weight. "raw" are the network's own 90 % intervals, split, cqr and stretch those
of `costmodel.conformal`, where 1 - alpha is promised to a random row of a new space. "averaged quantiles" are the
members' own, averaged level by level instead of as a mixture.

Records: one device after the other is left out, boosted trees on hand-made features learn its 5, 50 and 95 % quantiles
from the others, and an interval is calibrated by the spaces of the other devices, each of them scored when it was left
out itself (cross-conformal: those fits have seen the judged device). "weighted": those spaces weigh by
`conformal.device_weight`. Every space is taken after its best scale, since an unseen device has none.

Embeddings: ridge, trees and a Gaussian process on the shipped model's frozen states, trained on the rows that the model
was trained on, beside boosted trees on hand-made features. The last line is one JSON document.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from heldout import make_split, tuning_records
from sklearn.ensemble import HistGradientBoostingRegressor

from costmodel import baselines, conformal, dataset, report, stats, uncertainty, workloads
from costmodel.conformal import Bands
from costmodel.embeddings import EmbeddedModel, lipschitz_factors, reader
from costmodel.evaluate import evaluate, predict_all
from costmodel.features import variant_features
from costmodel.predictor import NeuralCostModel
from costmodel.sittings import combine

KINDS = ("split", "cqr", "stretch")
HALVINGS = 20


def judged(low, high, true, weights):
    """Coverage and mean width in log2; infinite intervals are counted and left out of the width."""
    finite = np.isfinite(high - low)
    width = float(np.average((high - low)[finite], weights=weights[finite])) if finite.any() else float("inf")
    return {
        "coverage": float(np.average((low <= true) & (true <= high), weights=weights)),
        "width": width,
        "infinite": float(np.average(~finite, weights=weights)),
    }


def halved(bands, true, spaces, alpha):
    """One row a kind of interval: means over random halvings of the spaces."""
    names, rows = {space: i for i, space in enumerate(dict.fromkeys(spaces))}, []
    place = np.array([names[space] for space in spaces])
    weights = conformal.space_weights(spaces)
    for halving in range(HALVINGS):
        first = np.random.default_rng(halving).permutation(len(names)) % 2 == 0
        fit, new = np.flatnonzero(first[place]), np.flatnonzero(~first[place])
        told = {"raw": (bands.low[new], bands.high[new])}
        for kind in KINDS:
            amount = conformal.conformal_quantile(
                conformal.scores(kind, bands[fit], true[fit]), alpha, weights=weights[fit]
            )
            told[kind] = conformal.widened(kind, bands[new], amount)
        rows += [{"interval": n, **judged(*ends, true[new], weights[new])} for n, ends in told.items()]
    return pd.DataFrame(rows).groupby("interval", sort=False).mean().reset_index()


def shipped(network, tests, alpha):
    """-> table of intervals, table of risk, and what the figures draw: ranks, and errors with scores."""
    intervals, ranks, pooled = [], {}, []
    for name, rows in tests.items():
        test = [m for m in rows if m.status == "ok"]
        true, spaces = np.log2([m.latency_us for m in test]), [dataset.space_key(m) for m in test]
        whole = predict_all(network, test)
        alone = [predict_all(NeuralCostModel([m], network.tokenizer, network.details), test) for m in network.members]
        both = {"mixture": whole, "averaged quantiles": uncertainty.averaged_quantiles(alone)}
        for ensemble, told in both.items():
            table = halved(uncertainty.bands(told, alpha=alpha), true, spaces, alpha)
            intervals.append(table.assign(test_set=name, ensemble=ensemble))
            ranks[f"{name}, {ensemble}"] = uncertainty.claimed_ranks(told, 2**true)
        errors = np.abs(true - uncertainty.bands(whole).middle)
        pooled += [(name, error, p) for error, p in zip(errors, whole, strict=True)]
    risks, curves = [], {}
    for name in (*tests, "both"):
        mine = [(error, p) for test_set, error, p in pooled if name in (test_set, "both")]
        risk, scores = risk_of(np.array([error for error, _ in mine]), [p for _, p in mine])
        risks.append({"test_set": name, **risk})
        if name == "both":
            curves = scores
    return pd.concat(intervals), pd.DataFrame(risks), ranks, curves


def risk_of(errors, told):
    """AURC (mean absolute error in log2) by score, and what the abstain rule answers."""
    width, trust = np.array([p.log2_width for p in told]), np.array([p.trust for p in told])
    scores = {"oracle": errors, "width": width, "trust, then width": width + 100.0 * ~trust}
    scores["random"] = np.zeros(len(errors))
    answered = ~np.array([p.abstains() for p in told])
    row = {name: stats.risk_coverage(errors, score)[2] for name, score in scores.items()}
    row |= {"trusted": trust.mean(), "answered": answered.mean()}
    row["error_answered"] = errors[answered].mean() if answered.any() else np.nan
    row["error_left"] = errors[~answered].mean() if (~answered).any() else np.nan
    return row, {name: (errors, score) for name, score in scores.items()}


def trees_of(rows, levels):
    """(columns, one fitted quantile regression a level) of slowdowns centred on each space's median."""
    frames, targets = [], []
    for space in dataset.groups(rows):
        frames.append(variant_features([m.variant for m in space.measurements], space.device))
        z = np.log2([m.latency_us for m in space.measurements])
        targets.append(z - np.median(z))
    table = pd.concat(frames, ignore_index=True).dropna(axis="columns", how="all")
    options = {"max_iter": 150, "max_leaf_nodes": 31, "learning_rate": 0.1, "min_samples_leaf": 20}
    models = [HistGradientBoostingRegressor(loss="quantile", quantile=q, random_state=0, **options) for q in levels]
    return table.columns, [m.fit(table.to_numpy(float), np.concatenate(targets)) for m in models]


def left_out(rows, alpha, most=1500):
    """[(device, bands, true)] of each space, told by trees that never saw its device; at most `most` rows a space."""
    rng, found = np.random.default_rng(0), []
    few = []
    for space in dataset.groups([m for m in rows if m.status == "ok"]):
        chosen = rng.permutation(len(space.measurements))[:most]
        few += [space.measurements[i] for i in chosen]
    for name in dict.fromkeys(m.device.name for m in few):
        print(f"without {name}", file=sys.stderr)
        columns, models = trees_of([m for m in few if m.device.name != name], (alpha / 2, 0.5, 1 - alpha / 2))
        for space in dataset.groups([m for m in few if m.device.name == name]):
            table = variant_features([m.variant for m in space.measurements], space.device).reindex(columns=columns)
            told = uncertainty.rearranged(np.array([m.predict(table.to_numpy(float)) for m in models]))
            z = np.log2([m.latency_us for m in space.measurements])
            true = z - np.median(z) + np.median(told[1])
            found.append((space.device, Bands(*told), true))
    return found


def across_devices(spaces, alpha):
    """One row a kind of interval: means over spaces, each calibrated by those of other devices."""
    rows = []
    for device, bands, true in spaces:
        others = [(d, b, t) for d, b, t in spaces if d.name != device.name]
        even = np.concatenate([np.full(len(t), 1 / len(t)) for _, _, t in others])
        near = np.concatenate([np.full(len(t), conformal.device_weight(device, d) / len(t)) for d, _, t in others])
        one = np.full(len(true), 1 / len(true))
        rows.append({"interval": "raw", **judged(bands.low, bands.high, true, one)})
        for kind in KINDS:
            scores = np.concatenate([conformal.scores(kind, b, t) for _, b, t in others])
            for name, weights in ((kind, even), (f"{kind}, weighted", near)):
                amount = conformal.conformal_quantile(scores, alpha, weights=weights)
                rows.append(
                    {"interval": name, **judged(*conformal.widened(kind, bands, amount), true, one)}
                    | {"near_spaces": float(weights.sum())}
                )
    return pd.DataFrame(rows).groupby("interval", sort=False).mean().reset_index()


class Remembered:
    """A reader that reads each variant once: three regressors ask for the same rows."""

    def __init__(self, inner):
        self.inner, self.known = inner, {}

    def embed(self, variants, device):
        new = [v for v in dict.fromkeys(variants) if (v, device) not in self.known]
        self.known |= {(v, device): row for v, row in zip(new, self.inner.embed(new, device), strict=True)}
        return np.stack([self.known[v, device] for v in variants])


def embedded(network, train, tests, most):
    """One row a regressor and test set, and the Lipschitz factors of the embeddings on the test rows."""
    rng = np.random.default_rng(0)
    ok = [m for m in train if m.status == "ok"]
    chosen = [ok[i] for i in rng.permutation(len(ok))[:most]]
    models = {
        f"{kind} on {pooling} states": EmbeddedModel(network, kind=kind, pooling=pooling)
        for pooling in ("mean", "last")
        for kind in ("ridge", "trees", "gp")
    }
    readers = {pooling: Remembered(reader(network, pooling=pooling)) for pooling in ("mean", "last")}
    for name, model in models.items():
        model.reader = readers[name.split()[2]]
    models["boosted trees on hand-made features"] = baselines.BoostedTrees(seed=0)
    models["the network itself"] = network
    rows, factors = [], []
    for name, model in models.items():
        print(name, file=sys.stderr)
        if model is not network:
            model.update(chosen)
        for test_set, measured in tests.items():
            test = [m for m in measured if m.status == "ok"]
            figures = evaluate(test, predict_all(model, test), by="space").fillna({"spearman": 0.0}).iloc[:-1]
            keys = ("spearman", "median_ape", "mape_scaled", "top1", "top10", "coverage90")
            rows.append({"test_set": test_set, "model": name, **figures[list(keys)].mean().to_dict()})
    for test_set, measured in tests.items():
        test = [m for m in measured if m.status == "ok"]
        z = np.log2([m.latency_us for m in test])
        for pooling in ("mean", "last"):
            states = readers[pooling].embed([m.variant for m in test], test[0].device)
            found = {"median": z, "median_shuffled": rng.permutation(z)}
            medians = {name: float(np.median(lipschitz_factors(states, values))) for name, values in found.items()}
            factors.append({"test_set": test_set, "pooling": pooling, **medians})
    return pd.DataFrame(rows), pd.DataFrame(factors)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records", nargs="*", type=Path, help="Kernel Tuner caches or T4 results, for unseen devices")
    parser.add_argument("--data", default=str(workloads.shipped("datasets") / "cpu-cpp"))
    parser.add_argument("--model", type=Path, help="a model of the held-out split; the shipped one if left out")
    parser.add_argument("--alpha", type=float, default=0.1)
    parser.add_argument("--rows", type=int, default=2500, help="training rows of the embedding regressors, at random")
    parser.add_argument("--figures", type=Path, help="folder for reliability.png and risk_coverage.png")
    options = parser.parse_args()
    torch.set_num_threads(1)
    train, tests = make_split(combine(dataset.read_parquet(options.data)), "shipped")
    network = NeuralCostModel.from_pretrained(options.model)
    network.details = {name: value for name, value in network.details.items() if name != "spread"}
    intervals, areas, ranks, curves = shipped(network, tests, options.alpha)
    tables = {"intervals": intervals, "risk": areas}
    if options.figures:
        report.write_png(report.reliability_figure(ranks), options.figures / "reliability.png")
        report.write_png(report.risk_coverage_figure(curves), options.figures / "risk_coverage.png")
    tables["embeddings"], tables["lipschitz"] = embedded(network, train, tests, options.rows)
    if options.records:
        rows = [m for path in options.records for m in tuning_records().read(path)]
        spaces = left_out(rows, options.alpha)
        tables["devices"] = across_devices(spaces, options.alpha)
    for name, table in tables.items():
        print(f"\n{name}\n{table.round(3).to_string(index=False)}")
    print(json.dumps({name: json.loads(t.round(4).to_json(orient="records")) for name, t in tables.items()}))


if __name__ == "__main__":
    main()
