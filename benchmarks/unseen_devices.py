"""Search spaces of GPUs that the model never saw: leave one device out of what others published, predict, and search.

    python benchmarks/unseen_devices.py RECORDS/*.json.gz --jobs 2 --folder runs/unseen      # trains, then the tables
    python benchmarks/unseen_devices.py RECORDS/*.json.gz --folder runs/unseen               # the tables again

RECORDS are Kernel Tuner caches or T4 results (AutoTuningAssociation's benchmark hub). A fold holds out every space of
its devices; devices that share no kernel may share a fold, so that fewer networks are trained. A kernel that is
recorded on one device only is held out with it: an unseen kernel. Each fold is a model folder (`--members` seeds,
public spaces alone), kept and reused; `costmodel replay --model FOLDER` takes it too.

Tables: ranks of the network (single members and averaged), of boosted trees on hand-made features (3 seeds), of their
average, of the nearest device's table; after 16, 64 and 256 probes; and our search with the network alone and with the
other devices' tables. The last line is one JSON document.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from costmodel import baselines, replay, stats, strategies, workloads
from costmodel.evaluate import average, predict_all
from costmodel.examples import fit
from costmodel.predictor import NeuralCostModel
from costmodel.recipe import Recipe

PROBES, REST = (16, 64, 256), 2000


def read(files):
    records = workloads.load_module(workloads.shipped("collectors") / "tuning_records.py")
    return [m for path in files for m in records.read(path)]


def folds(rows):
    """[devices held out together]: greedily, devices that have no kernel in common."""
    kernels = {}
    for m in rows:
        kernels.setdefault(m.device.name, set()).add(m.variant.kernel.name)
    found = []
    for device, mine in sorted(kernels.items()):
        home = next((f for f in found if not any(kernels[other] & mine for other in f)), None)
        if home is None:
            found.append([device])
        else:
            home.append(device)
    return found


def split(rows, held_out):
    """-> training and test rows; a kernel that no other device recorded is nowhere in training."""
    test = [m for m in rows if m.device.name in held_out]
    return [m for m in rows if m.device.name not in held_out], test


def model_of(fold, train, options):
    folder = options.folder / "+".join(name.replace(" ", "-") for name in fold)
    if (folder / "model.safetensors").is_file():
        return NeuralCostModel.from_pretrained(folder)
    started = time.perf_counter()
    recipe = Recipe(members=options.members, steps=options.steps, reading_steps=0)
    model, _ = fit(train, recipe, checkpoints=folder / "training", jobs=options.jobs)
    model.save_pretrained(folder)
    print(f"{', '.join(fold)}: {len(train)} rows, {time.perf_counter() - started:.0f} s", file=sys.stderr)
    return model


def ranks(true_us, predicted_us):
    return {
        "spearman": stats.spearman(true_us, predicted_us),
        "kendall": stats.kendall(true_us, predicted_us),
        "mape_scaled": stats.mape_scaled(true_us, predicted_us),
        "top1": 1 / stats.top_k_slowdown(true_us, predicted_us, 1),
        "top10": 1 / stats.top_k_slowdown(true_us, predicted_us, 10),
    }


def zero_shot(space, model, trees, elsewhere):
    """One row a model on one space."""
    ok = [m for m in space.measurements if m.status == "ok"]
    true_us = np.array([m.latency_us for m in ok])
    whole = predict_all(model, ok)
    told = {"network": [predict_all(NeuralCostModel([m], model.tokenizer, model.details), ok) for m in model.members]}
    told["averaged"] = [whole]
    told["boosted trees"] = [predict_all(one, ok) for one in trees]
    near = baselines.NearestTable()
    near.update(space.others(elsewhere))
    if near.knows(ok[0].variant):
        told["nearest table"] = [near.predict([m.variant for m in ok], space.device)]
    points = {name: [average([one]) for one in several] for name, several in told.items()}
    points["averaged and trees"] = [
        2 ** ((centred(points["averaged"][0]) + centred(one)) / 2) for one in points["boosted trees"]
    ]
    rows = []
    for name, several in points.items():
        each = pd.DataFrame([ranks(true_us, one) for one in several])
        rows.append({"space": space.kernel.name, "device": space.device.name, "model": name, **each.mean().to_dict()})
    low, high = (np.array([p.quantile_us(q) for p in whole]) for q in (0.05, 0.95))
    scale = np.exp(np.median(np.log(true_us) - np.log(points["averaged"][0])))
    needed = np.log(true_us / scale / points["averaged"][0])
    middle = np.log(points["averaged"][0])
    widths = np.where(needed >= 0, np.log(high) - middle, middle - np.log(low))
    rows[1]["coverage90"] = stats.coverage(low * scale, high * scale, true_us)
    rows[1]["ratios"] = np.abs(needed) / np.maximum(widths, 1e-6)
    return rows


def centred(us):
    return np.log2(us) - np.median(np.log2(us))


def after_probes(space, model, seeds):
    """Spearman on the rest (on 2,000 of it) after n random probes were told to `update`; failures count as probes."""
    rows = []
    for count in PROBES:
        for seed in range(seeds):
            order = np.random.default_rng(seed).permutation(len(space.measurements))
            parts = order[:count], order[count : count + REST]
            probes, rest = ([space.measurements[i] for i in part] for part in parts)
            updated = NeuralCostModel(model.members, model.tokenizer, model.details)
            updated.update(probes)
            ok = [m for m in rest if m.status == "ok"]
            told = average([updated.predict([m.variant for m in ok], space.device)])
            rho = stats.spearman([m.latency_us for m in ok], told)
            rows.append({"space": space.kernel.name, "device": space.device.name, "probes": count, "spearman": rho})
    return rows


def calibrate(ranked):
    """Split-conformal over spaces: one's 90 % intervals are widened by the factor that covers 90 % of the others."""
    ratios = list(ranked[ranked["model"] == "averaged"]["ratios"])
    factors = [weighted_quantile([r for k, r in enumerate(ratios) if k != i]) for i in range(len(ratios))]
    covered = [float((mine <= factor).mean()) for mine, factor in zip(ratios, factors, strict=True)]
    before = [float((mine <= 1).mean()) for mine in ratios]
    overall = weighted_quantile(ratios)
    print(f"90 % intervals cover {np.mean(before):.3f} after one scale; widened by the others' factor", end=" ")
    print(f"{np.mean(covered):.3f}; the factor of all spaces is {overall:.2f}")
    return {"coverage": float(np.mean(before)), "conformal_coverage": float(np.mean(covered)), "factor": overall}


def weighted_quantile(ratios):
    """The 0.9 quantile of several spaces' ratios, each space of equal weight."""
    values = np.concatenate(ratios)
    weights = np.concatenate([np.full(len(r), 1 / len(r)) for r in ratios])
    order = np.argsort(values)
    return float(values[order][np.searchsorted(weights[order].cumsum(), 0.9 * weights.sum())])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records", nargs="+", type=Path)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--members", type=int, default=4)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=3, help="of the trees, the probes and the searches")
    parser.add_argument("--budget", type=int, default=200)
    parser.add_argument("--train-only", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.jobs)
    rows = read(options.records)
    ranked, probed, runs = [], [], []
    for fold in folds(rows):
        train, test = split(rows, fold)
        model = model_of(fold, train, options)
        if options.train_only:
            continue
        trees = [baselines.BoostedTrees(seed=seed) for seed in range(options.seeds)]
        for one in trees:
            one.update(train)
        for space in replay.spaces(test, {}, min_size=100):
            print(f"{space.name} on {space.device.name}", file=sys.stderr)
            ranked += zero_shot(space, model, trees, rows)
            probed += after_probes(space, model, options.seeds)
            sources = {
                "network": strategies.Sources(lambda model=model: model),
                "network and tables": strategies.Sources(lambda model=model: model, rows),
            }
            searches = {name: strategies.strategy("costmodel", one) for name, one in sources.items()}
            runs += list(replay.replay([space], searches, budget=options.budget, seeds=1))
    if options.train_only:
        return
    report(pd.DataFrame(ranked), pd.DataFrame(probed), replay.summary_rows(runs), options)


def report(ranked, probed, searched, options):
    by_model = ranked.groupby("model", sort=False)
    print(ranked.pivot_table(index=["space", "device"], columns="model", values="spearman", sort=False).round(3))
    intervals = calibrate(ranked)
    table = by_model[["spearman", "kendall", "mape_scaled", "top1", "top10", "coverage90"]].mean()
    for name, mine in by_model:
        table.loc[name, ["low", "high"]] = stats.bootstrap_interval(mine["spearman"].to_numpy(), np.mean, seed=0)
    print(table.round(3).to_string())
    probes = probed.pivot_table(index=["space", "device"], columns="probes", values="spearman", sort=False)
    print(probes.round(3).to_string())
    print(probes.mean().round(3).to_string())
    flat = pd.DataFrame(
        [
            {"space": r["space"], "device": r["device"], "strategy": r["strategy"]}
            | {f"at_{n}": r["fraction_at"][n] for n in ("1", "10", "20", "50", "100")}
            | {f"to_{w}": r["evaluations_to"][w] or 2 * options.budget for w in ("0.05", "0.01")}
            for r in searched
        ]
    )
    print(flat.to_string(index=False))
    grouped = flat.groupby("strategy", sort=False)
    summary = pd.concat(
        [
            grouped[[f"to_{w}" for w in ("0.05", "0.01")]].agg(stats.geometric_mean),
            grouped[[f"at_{n}" for n in ("1", "10", "20", "50", "100")]].mean(),
        ],
        axis=1,
    )
    print(summary.round(3).to_string())
    document = {
        "intervals": intervals,
        "zero_shot": json.loads(table.round(4).reset_index().to_json(orient="records")),
        "spaces": json.loads(ranked.drop(columns="ratios").round(4).to_json(orient="records")),
        "probes": json.loads(probes.mean().round(4).to_json()),
        "search": json.loads(summary.round(4).reset_index().to_json(orient="records")),
        "searches": json.loads(flat.to_json(orient="records")),
    }
    print(json.dumps(document))


if __name__ == "__main__":
    main()
