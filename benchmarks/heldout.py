"""Accuracy on what was held out: the network beside boosted trees, nearest neighbour and roofline, over several seeds.

    python benchmarks/heldout.py --by problem            # unseen problems of seen sources
    python benchmarks/heldout.py --by form               # unseen sources of seen operations
    python benchmarks/heldout.py --by kernel             # unseen operations
    python benchmarks/heldout.py --by kernel --without loop_nest

Prints one row a model: figures are means over the held-out spaces (one source on one problem), then over seeds; the
interval is a 95 % bootstrap over spaces and seeds of the Spearman correlation. The last line is one JSON document.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from costmodel import baselines, dataset, stats, workloads
from costmodel.evaluate import average, evaluate_points, predict_all
from costmodel.recipe import Recipe, fit
from costmodel.sittings import combine

# Fixed before any model was trained. Kernels: one with near relatives in training (batched_matmul: matmul), two with a
# distant one (stencil3d: stencil2d; layer_norm: softmax), one with none (histogram).
HELD_OUT_KERNELS = ("batched_matmul", "histogram", "layer_norm", "stencil3d")
FIGURES = ["spearman", "kendall", "median_ape", "mape_scaled", "top1", "top10"]


def splits(rows, by, seed):
    if by == "kernel":
        return dataset.split(rows, by=by, held_out=HELD_OUT_KERNELS)
    # loop nests always stay in training: what is held out are the kernels that people tune
    nests = [m for m in rows if m.variant.kernel.name.startswith("loop_nest")]
    tuned = [m for m in rows if not m.variant.kernel.name.startswith("loop_nest")]
    parts = dataset.split(tuned, by=by, fraction=0.25, seed=seed)
    return dataset.Split(by, (*parts.train, *nests), parts.test)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--by", choices=["problem", "form", "kernel"], default="problem")
    parser.add_argument("--data", default=str(workloads.shipped("datasets") / "cpu-cpp"))
    parser.add_argument("--without", help="leave kernels whose name starts so out of training")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--members", type=int, default=1, help="networks averaged per seed")
    parser.add_argument("--steps", type=int, default=Recipe().steps)
    parser.add_argument("--reading-steps", type=int, default=Recipe().reading_steps)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--save", type=Path, help="folder to write the model of seed 0 to")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = combine(dataset.read_parquet(options.data))
    tables = []
    for seed in range(options.seeds):
        parts = splits(rows, options.by, seed)
        train = [m for m in parts.train if not options.without or not m.variant.kernel.name.startswith(options.without)]
        test = [m for m in parts.test if m.status == "ok"]
        started = time.perf_counter()
        recipe = Recipe(
            members=options.members, steps=options.steps, reading_steps=options.reading_steps, seed=100 * seed
        )
        network, _ = fit(train, recipe)
        print(f"seed {seed}: {len(train)} rows, trained in {time.perf_counter() - started:.0f} s", file=sys.stderr)
        if options.save and seed == 0:
            network.save_pretrained(options.save)
        told = {"network": predict_all(network, test)}
        for name, model in {
            "boosted trees": baselines.BoostedTrees(seed=seed),
            "nearest neighbour": baselines.NearestNeighbour(),
            "roofline": baselines.Roofline(),
        }.items():
            model.update(train)
            told[name] = predict_all(model, test)
        points = {name: average([predictions]) for name, predictions in told.items()}
        points["network and trees"] = average([told["network"], told["boosted trees"]])
        for name, predicted in points.items():
            table = evaluate_points(test, predicted, by="space").iloc[:-1]
            tables.append(table.assign(model=name, seed=seed))
        print(pd.concat(tables).groupby("model", sort=False)[FIGURES].mean().round(3).to_string(), file=sys.stderr)
    everything = pd.concat(tables)
    report = []
    for name, mine in everything.groupby("model", sort=False):
        low, high = stats.bootstrap_interval(mine["spearman"].fillna(0.0).to_numpy(), np.mean, seed=0)
        figures = {key: round(float(mine[key].mean()), 4) for key in FIGURES}
        by_seed = [round(float(x), 4) for x in mine.groupby("seed")["spearman"].mean()]
        report.append({"model": name, **figures, "spearman_95": [round(low, 4), round(high, 4)], "seeds": by_seed})
    print(pd.DataFrame(report).to_string(index=False))
    print(json.dumps({"by": options.by, "without": options.without, "steps": options.steps, "rows": report}))


if __name__ == "__main__":
    main()
