"""Latency of whole programs: the text model beside all opponents, on what was held out.

    python benchmarks/graphs.py --data runs/graphs.sqlite --seeds 3
    python benchmarks/graphs.py --data datasets/cpu-graphs --splits random --steps 3000 --save runs/graph-model

Splits, none of which divides a skeleton (programs of equal instructions that differ in sizes) or the versions of one
program: "random"; "family:NAME", each generated family of programs in turn; "hf", all Hugging Face models. Pairs of
programs that are within 10 % are not counted in any rank correlation. "slowdown" is Kendall's tau of latency over the
frozen floor (costmodel/graph_floor.py). Intervals are 95 % bootstraps over programs and seeds. On the random split also
the ratios between versions of one program: the share on the right side of 1, of those off it by 10 %, and the error.
The last line is one JSON document.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from costmodel import graph_floor
from costmodel.dataset import read_parquet
from costmodel.graph_baselines import opponents
from costmodel.graph_model import GraphConfig, GraphModel
from costmodel.graph_network import GraphNetwork
from costmodel.graph_rows import APART, family_split, random_split, ratio_scores, rows_of, scores
from costmodel.store import Store

LEAST_IN_FAMILY = 20  # test rows
FIGURES = ("kendall", "spearman", "median_ape", "slowdown_kendall")


def read(path):
    """Sittings apart, as they were taken."""
    if Path(path).is_dir() or Path(path).suffix == ".parquet":
        return rows_of(read_parquet(path))
    with Store(path) as store:
        return rows_of(store.measurements())


def splits(rows, wanted, seed):
    """-> {name: (train, test)}"""
    families = sorted({row.family for row in rows})
    hf = [family for family in families if family.startswith("hf-")]
    found = {}
    if "random" in wanted:
        found["random"] = random_split(rows, seed=seed)
    for family in families:
        if "family" in wanted and family not in hf and sum(r.family == family for r in rows) >= LEAST_IN_FAMILY:
            found[f"family:{family}"] = family_split(rows, [family])
    if "hf" in wanted and sum(row.family in hf for row in rows) >= LEAST_IN_FAMILY:
        found["hf"] = family_split(rows, hf)
    return found


def contenders(seed, arguments):
    sizes = {"steps": arguments.steps, "members": arguments.members, "hidden": arguments.hidden}
    return {
        **opponents(seed=seed),
        "graph network": GraphNetwork(seed=seed, steps=arguments.network_steps),
        "text": GraphModel(GraphConfig(seed=1000 * seed, **sizes)),
    }


def resampled(test, predictions, figure, resamples=300):
    """The 95 % interval of a figure's mean over seeds: programs are drawn with replacement, and seeds."""
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(resamples):
        seed = rng.integers(len(predictions))
        chosen = rng.integers(len(test[seed]), size=len(test[seed]))
        told = scores([test[seed][n] for n in chosen], predictions[seed][chosen])[figure]
        drawn.append(told)
    low, high = np.nanquantile(drawn, [0.025, 0.975])
    return round(float(low), 3), round(float(high), 3)


def run(rows, arguments):
    tests, answers, seconds, ratios = {}, {}, {}, []
    for seed in range(arguments.seeds):
        for split, (train, test) in splits(rows, arguments.splits, seed).items():
            tests.setdefault(split, []).append(test)
            for name, model in contenders(seed, arguments).items():
                start = time.process_time()
                model.fit(train)
                seconds.setdefault(name, []).append(time.process_time() - start)
                told = model.predict(test)
                answers.setdefault((split, name), []).append(told)
                print(split, seed, name, {k: round(v, 3) for k, v in scores(test, told).items()}, file=sys.stderr)
                if split == "random":
                    ratios += [{"model": name, "seed": seed, **row} for row in ratio_scores(test, told)]
    table = []
    for (split, name), predictions in answers.items():
        test = tests[split]
        each = [scores(t, p) for t, p in zip(test, predictions, strict=True)]
        row = {"split": split, "model": name, "n": int(np.mean([one["n"] for one in each]))}
        for figure in FIGURES:
            row[figure] = round(float(np.mean([one[figure] for one in each])), 3)
            row[f"{figure}_interval"] = resampled(test, predictions, figure)
        table.append(row)
    return table, ratios, {name: round(float(np.mean(taken)), 1) for name, taken in seconds.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="a store, or a folder of parquet")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--engines", nargs="*", help="only what ran under these")
    parser.add_argument("--splits", nargs="*", choices=["random", "family", "hf"], default=["random", "family", "hf"])
    parser.add_argument("--steps", type=int, default=GraphConfig().steps, help="of the text model")
    parser.add_argument("--members", type=int, default=1)
    parser.add_argument("--hidden", type=int, default=GraphConfig().hidden)
    parser.add_argument("--network-steps", type=int, default=1200, help="of the graph network")
    parser.add_argument("--save", help="train the text model on everything and write it to this folder")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = [row for row in read(arguments.data) if not arguments.engines or row.engine in arguments.engines]
    spread = float(np.median([row.spread for row in rows]))
    print(f"{len(rows)} programs and engines, {len({row.program.skeleton for row in rows})} skeletons, "
          f"median spread of sittings {spread:.1%}")  # fmt: skip
    table, ratios, seconds = run(rows, arguments)
    if table:
        frame = pd.DataFrame(table)
        shown = frame.assign(**{f: frame[f].map("{:.3f}".format) + " " + frame[f"{f}_interval"].map(list).map(str)
                                for f in FIGURES})  # fmt: skip
        print(shown[["split", "model", "n", *FIGURES]].to_string(index=False))
    if ratios:
        means = (
            pd.DataFrame(ratios).groupby(["differ_in", "model"], sort=False)[["clear", "right", "ratio_error"]].mean()
        )
        print(means.round(3).to_string())
    if arguments.save:
        model = GraphModel(GraphConfig(steps=arguments.steps, members=arguments.members, hidden=arguments.hidden))
        model.fit(rows)
        model.save(arguments.save)
        print(f"wrote {arguments.save}")
    print(json.dumps({
        "rows": table, "ratios": ratios, "train_cpu_s": seconds, "floor": graph_floor.constants(), "apart": APART,
        "spread": spread,
    }, default=float).replace("NaN", "null"))  # fmt: skip


if __name__ == "__main__":
    main()
