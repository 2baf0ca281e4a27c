"""Accuracy on what was held out: the network beside boosted trees, nearest neighbour and roofline, over several seeds.

    python benchmarks/heldout.py --jobs 2 --members 4 --records RECORDS/*.gz --save costmodel/pretrained
                                                                             # how the shipped model is made
    python benchmarks/heldout.py --model costmodel/pretrained                # its figures again
    python benchmarks/heldout.py --split form                                # unseen sources of seen operations
    python benchmarks/heldout.py --steps 500 --without loop_nest             # what the loop nests buy
    python benchmarks/heldout.py --steps 500 --reading-steps 0               # what reading sources first buys

The shipped split holds out four operations with all their sources, and of the others a quarter of their problems: two
test sets, "kernels" and "problems". A member is one seed; "network" are single members, "averaged" all of them. Figures
are means over the held-out spaces (one source on one problem) and seeds; the interval is a 95 % bootstrap of Spearman
over spaces and seeds. A constant prediction ranks nothing and counts as Spearman 0. The last line is one JSON document.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from costmodel import baselines, conformal, dataset, stats, uncertainty, workloads
from costmodel.evaluate import average, evaluate_points, predict_all
from costmodel.examples import fit
from costmodel.predictor import NeuralCostModel
from costmodel.recipe import Recipe
from costmodel.sittings import combine

# Fixed before any model was trained: one operation with a near relative in training (batched_matmul: matmul), two with
# a distant one (stencil3d: stencil2d; layer_norm: softmax), one with none (histogram).
HELD_OUT_KERNELS = ("batched_matmul", "histogram", "layer_norm", "stencil3d")
FIGURES = ["spearman", "kendall", "median_ape", "mape_scaled", "top1", "top10"]


def tuning_records():
    return workloads.load_module(workloads.shipped("collectors") / "tuning_records.py")


def is_nest(measurement):
    return measurement.variant.kernel.name.startswith("loop_nest")


def make_split(rows, name):
    """-> training rows, {test set: rows}. Loop nests are only ever trained on: they are nobody's kernels."""
    nests = [m for m in rows if is_nest(m)]
    tuned = [m for m in rows if not is_nest(m)]
    if name == "form":
        parts = dataset.split(tuned, by="form", fraction=0.25, seed=0)
        return [*parts.train, *nests], {"forms": list(parts.test)}
    kernels = dataset.split(tuned, by="kernel", held_out=HELD_OUT_KERNELS)
    problems = dataset.split(kernels.train, by="problem", fraction=0.25, seed=0)
    return [*problems.train, *nests], {"problems": list(problems.test), "kernels": list(kernels.test)}


def rivals(train, test, seeds):
    """[seed] -> {name: predictions}; only the trees have a seed."""
    fixed = {"nearest neighbour": baselines.NearestNeighbour(), "roofline": baselines.Roofline()}
    told = {}
    for name, model in fixed.items():
        model.update(train)
        told[name] = predict_all(model, test)
    answers = []
    for seed in range(seeds):
        trees = baselines.BoostedTrees(seed=seed)
        trees.update(train)
        answers.append({"boosted trees": predict_all(trees, test), **told})
    return answers


def calibrate(test, predictions):
    """In log2: on one half of the spaces the factor on the interval's half-widths that covers 90 % of the rows, on the
    other half what that factor then covers. -> (factor, coverage as predicted, coverage with the factor).

    The shipped model's `spread` is made so, from few spaces; `NeuralCostModel.calibrate` weighs spaces alike and makes
    up for how few they are."""
    spaces = {s: i for i, s in enumerate(dict.fromkeys((m.variant.kernel.identity, m.variant.problem) for m in test))}
    half = np.array([spaces[m.variant.kernel.identity, m.variant.problem] % 2 == 0 for m in test])
    needed = conformal.scores("stretch", uncertainty.bands(predictions), np.log2([m.latency_us for m in test]))
    factor = float(np.quantile(needed[half], 0.9))
    return factor, float((needed <= 1).mean()), float((needed[~half] <= factor).mean())


def report(tables):
    rows = []
    everything = pd.concat(tables)
    everything["spearman"] = everything["spearman"].fillna(0.0)
    everything["kendall"] = everything["kendall"].fillna(0.0)
    for (test_set, name), mine in everything.groupby(["test_set", "model"], sort=False):
        low, high = stats.bootstrap_interval(mine["spearman"].to_numpy(), np.mean, seed=0)
        figures = {key: round(float(mine[key].mean()), 3) for key in FIGURES}
        by_seed = [round(float(x), 3) for x in mine.groupby("seed")["spearman"].mean()]
        spaces = mine["group"].nunique()
        rows.append(
            {
                "test_set": test_set,
                "spaces": spaces,
                "model": name,
                **figures,
                "low": round(low, 3),
                "high": round(high, 3),
            }
            | {"seeds": by_seed}
        )
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--split", choices=["shipped", "form"], default="shipped")
    parser.add_argument("--data", default=str(workloads.shipped("datasets") / "cpu-cpp"))
    parser.add_argument("--records", nargs="*", default=[], help="what others measured, trained on besides")
    parser.add_argument("--without", help="leave kernels whose name starts so out of training")
    parser.add_argument("--members", type=int, default=3)
    parser.add_argument("--steps", type=int, default=Recipe().steps)
    parser.add_argument("--reading-steps", type=int, default=Recipe().reading_steps)
    parser.add_argument("--hidden-size", type=int, default=Recipe().hidden_size)
    parser.add_argument("--layers", type=int, default=Recipe().layers)
    parser.add_argument("--vocab-size", type=int, default=Recipe().vocab_size)
    parser.add_argument("--jobs", type=int, default=1, help="members trained at once, each on one thread")
    parser.add_argument("--model", type=Path, help="a model of this split instead of training one")
    parser.add_argument("--save", type=Path, help="folder to write the model to")
    parser.add_argument("--checkpoints", type=Path, help="folder from which a killed run goes on")
    options = parser.parse_args()
    torch.set_num_threads(options.jobs)
    train, tests = make_split(combine(dataset.read_parquet(options.data)), options.split)
    if options.without:
        train = [m for m in train if not m.variant.kernel.name.startswith(options.without)]
    if options.model:
        network = NeuralCostModel.from_pretrained(options.model)
    else:
        started = time.perf_counter()
        sizes = ("members", "steps", "reading_steps", "hidden_size", "layers", "vocab_size")
        recipe = Recipe(**{name: getattr(options, name) for name in sizes})
        others = [m for path in options.records for m in tuning_records().read(path)]
        network, _ = fit([*train, *others], recipe, checkpoints=options.checkpoints, jobs=options.jobs)
        print(f"{len(train) + len(others)} rows, trained in {time.perf_counter() - started:.0f} s", file=sys.stderr)
        network.details["held_out"] = list(HELD_OUT_KERNELS) if options.split == "shipped" else []
        if options.save:
            network.save_pretrained(options.save)  # what took long is kept, whatever happens below
    spreads = network.details.pop("spread", {})
    tables, calibration = [], {}
    for test_set, rows in tests.items():
        test = [m for m in rows if m.status == "ok"]
        whole = predict_all(network, test)
        calibration[test_set] = calibrate(test, whole)
        opponents = rivals(train, test, len(network.members))
        for seed, member in enumerate(network.members):
            alone = NeuralCostModel([member], network.tokenizer, network.details)
            told = {"network": predict_all(alone, test), **opponents[seed]}
            points = {name: average([predictions]) for name, predictions in told.items()}
            points["averaged"] = average([whole])
            points["averaged and trees"] = average([whole, told["boosted trees"]])
            for name, predicted in points.items():
                table = evaluate_points(test, predicted, by="space").iloc[:-1]
                tables.append(table.assign(test_set=test_set, model=name, seed=seed))
    rows = report(tables)
    print(pd.DataFrame(rows).drop(columns="seeds").to_string(index=False))
    for test_set, (factor, before, after) in calibration.items():
        print(
            f"{test_set}: 90 % intervals cover {before:.3f}; times {factor:.2f}, from half of the spaces, {after:.3f}"
        )
    if options.split == "shipped":
        spreads = {"trusted": calibration["problems"][0], "untrusted": calibration["kernels"][0]}
    network.details["spread"] = spreads
    if options.save:
        network.save_pretrained(options.save)
    keys = ("split", "without", "steps", "reading_steps", "members")
    settings = {key: getattr(options, key) for key in keys}
    print(json.dumps({**settings, "rows": rows, "calibration": calibration}))


if __name__ == "__main__":
    main()
