"""What a cost model learns from other tasks, on spaces that others measured: a table each.

    python benchmarks/transfer.py tasks RECORDS/*.gz        # a small task, with 0, 1, 2, 4 and 8 others beside it
    python benchmarks/transfer.py metadata RECORDS/*.gz     # the device's text right, left out, and another's
    python benchmarks/transfer.py shots RECORDS/*.gz        # 0 to 512 rows of a new space, fine-tuned or by `update`
    python benchmarks/transfer.py pretrained RECORDS/*.gz   # losses, from scratch and from a pretrained trunk
    python benchmarks/transfer.py scaling RECORDS/*.gz      # rows and width; a power law fitted to all but the largest
    python benchmarks/transfer.py churn RECORDS/*.gz        # two trainings of one recipe, alone and averaged by four

RECORDS: caches of Kernel Tuner or T4 results. The space --target (a part of its file's name) is the small or new task.
Figures are means over --seeds, of the configs of the target that nothing was trained on. The last line is JSON.
"""

import argparse
import copy
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from over_seeds import as_json, over_seeds

from costmodel import stats, workloads
from costmodel.examples import fit, shards_of
from costmodel.model import heads
from costmodel.model.checkpoint import Member
from costmodel.predictor import NeuralCostModel
from costmodel.recipe import Recipe, train_members
from costmodel.serialize import vendor_only
from costmodel.sittings import combine

TEST, PER_SPACE = 400, 2000  # test rows; rows of another space, at most


def read(paths, target):
    """-> rows of the target that ran, and of every other space, by file name."""
    records = workloads.load_module(workloads.shipped("collectors") / "tuning_records.py")
    spaces = {}
    for path in sorted(paths):
        rows = [m for m in combine(records.read(path)) if m.status == "ok"]
        order = np.random.default_rng(0).permutation(len(rows))
        spaces[path.name.split(".")[0]] = [rows[i] for i in order]
    named = [name for name in spaces if target in name]
    if len(named) != 1:
        raise SystemExit(
            f"got --target {target}, which is in {named or 'no'} names, expected one of {', '.join(spaces)}"
        )
    mine = spaces.pop(named[0])
    return mine, {name: rows[:PER_SPACE] for name, rows in spaces.items()}


def recipe(seed, steps, **options):
    return Recipe(**{"members": 1, "steps": steps, "reading_steps": 0, "rows": 256, "seed": seed, **options})


def scores(model, rows, *, device=None):
    """On one space, whose scale is unknown to the network: ranks, and the error after the one best factor."""
    told = model.predict([m.variant for m in rows], device or rows[0].device)
    true, predicted = [m.latency_us for m in rows], [p.median_us for p in told]
    return {"spearman": stats.spearman(true, predicted), "mape_scaled": stats.mape_scaled(true, predicted),
            "top10": 1 / stats.top_k_slowdown(true, predicted, 10)}  # fmt: skip


def tasks(mine, others, seed, steps):
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(mine))
    small, test = [mine[i] for i in order[:100]], [mine[i] for i in order[-TEST:]]
    names = sorted(others, key=lambda name: rng.random())
    rows = []
    for count in sorted({min(count, len(names)) for count in (0, 1, 2, 4, 8)}):
        more = [m for name in names[:count] for m in others[name]]
        model, _ = fit([*small, *more], recipe(seed, steps))
        rows.append({"other_tasks": count, **scores(model, test)})
    return rows


def metadata(mine, others, seed, steps):
    """One network for all spaces but the target; asked of those whose kernel several devices share, with the text of
    their device changed. Means over these spaces."""
    names = sorted(others)
    train = [m for name in names for m in others[name][: PER_SPACE // 2]]
    model, _ = fit(train, recipe(seed, 2 * steps))
    model.familiarity = None  # else an unknown device would be asked in two wordings
    rows = []
    for name in names:
        test = others[name][PER_SPACE // 2 :][:TEST]
        kernel = name.split("__")[0]
        siblings = [n for n in names if n.startswith(kernel + "__") and n != name]
        if len(test) < 50 or not siblings:
            continue
        own = test[0].device
        wrong = others[siblings[seed % len(siblings)]][0].device
        nothing = replace(vendor_only(own), vendor="?")
        for told, sheet in (("right", own), ("left out", nothing), ("another's", wrong)):
            rows.append({"device_text": told, **scores(model, test, device=sheet)})
    if not rows:
        raise SystemExit("got no kernel with two devices beside --target, expected KERNEL__DEVICE records of several")
    return pd.DataFrame(rows).groupby("device_text", sort=False).mean().reset_index().to_dict("records")


def shots(mine, others, seed, steps):
    order = np.random.default_rng(seed).permutation(len(mine))
    few, test = [mine[i] for i in order[:512]], [mine[i] for i in order[-TEST:]]
    base, _ = fit([m for rows in others.values() for m in rows], recipe(seed, steps))
    rows = [{"rows": 0, "how": "as it is", **scores(base, test)}]
    for count in (8, 32, 128, 512):
        tuned, _ = fit(few[:count], recipe(seed, max(1, 3 * steps // 20)), start=copied(base))
        rows.append({"rows": count, "how": "fine-tuned", **scores(tuned, test)})
        corrected = copied(base)
        corrected.update(few[:count])
        rows.append({"rows": count, "how": "update", **scores(corrected, test)})
        alone, _ = fit(few[:count], recipe(seed, max(1, steps // 2)))
        rows.append({"rows": count, "how": "from scratch", **scores(alone, test)})
    return rows


def copied(model):
    members = [Member(copy.deepcopy(m.backbone), copy.deepcopy(m.head)) for m in model.members]
    return NeuralCostModel(members, model.tokenizer, copy.deepcopy(model.details))


def pretrained(mine, others, seed, steps):
    order = np.random.default_rng(seed).permutation(len(mine))
    small, test = [mine[i] for i in order[:200]], [mine[i] for i in order[-TEST:]]
    base, _ = fit([m for rows in others.values() for m in rows], recipe(seed, steps, loss="hl-gauss"))
    shards = shards_of(small, recipe(seed, steps), tokenizer=base.tokenizer)
    z = np.concatenate([g.z[~g.failed] for g in shards.groups])
    rows = []
    for head, loss in (("grid", "hl-gauss"), ("grid", "raft"), ("grid", "hl-gauss+raft"), ("pointwise", "squared")):
        for begin in ("from scratch", "pretrained trunk", "pretrained"):
            own = recipe(seed, max(1, 3 * steps // 8), head=head, loss=loss)
            start = None
            if begin != "from scratch":
                backbone = copy.deepcopy(base.members[0].backbone)
                torch.manual_seed(seed)
                made = heads.make(
                    head, backbone.config.hidden_size, z=z, vocab_size=backbone.config.vocab_size, loss=loss
                )
                if begin == "pretrained":
                    if head != "grid":
                        continue
                    made.load_state_dict(base.members[0].head.state_dict())
                start = [Member(backbone, made)]
            members, _ = train_members(shards, own, start=start)
            model = NeuralCostModel(members, shards.tokenizer, shards.details)
            rows.append({"head": head, "loss": loss, "begin": begin, **scores(model, test)})
    return rows


def scaling(mine, others, seed, steps):
    order = np.random.default_rng(seed).permutation(len(mine))
    test = [mine[i] for i in order[-TEST:]]
    rows = []
    for count in sorted({min(count, len(mine) - TEST) for count in (125, 250, 500, 1000, 2000)}):
        for width in (16, 32, 64):
            train = [mine[i] for i in order[:count]]
            model, _ = fit(train, recipe(seed, steps, hidden_size=width))
            rows.append({"rows": count, "width": width, **scores(model, test)})
    return rows


def churn(mine, others, seed, steps):
    order = np.random.default_rng(seed).permutation(len(mine))
    train, test = [mine[i] for i in order[:1000]], [mine[i] for i in order[-TEST:]]
    model, _ = fit(train, recipe(seed * 10, max(1, steps // 2), members=8))
    variants = [m.variant for m in test]
    halves = {"one": ([0], [1]), "average of four": ([0, 1, 2, 3], [4, 5, 6, 7])}
    rows = []
    for name, (first, second) in halves.items():
        told = [
            np.log2([p.median_us for p in NeuralCostModel([model.members[i] for i in which], model.tokenizer,
                                                           model.details).predict(variants, test[0].device)])
            for which in (first, second)
        ]  # fmt: skip
        tops = [set(np.argsort(z)[:10]) for z in told]
        rows.append({"network": name, "log2_change": float(np.abs(told[0] - told[1]).mean()),
                     "kendall_between": stats.kendall(2 ** told[0], 2 ** told[1]),
                     "same_of_top10": len(tops[0] & tops[1]) / 10})  # fmt: skip
    return rows


def power_law(table):
    """error = a rows^-b of each width, fitted to all but the most rows, and what it says of those."""
    said = []
    for width, mine in table.groupby("width"):
        mine = mine.sort_values("rows")
        known, last = mine.iloc[:-1], mine.iloc[-1]
        slope, start = np.polyfit(np.log(known["rows"]), np.log(known["mape_scaled"]), 1)
        guess = float(np.exp(start + slope * np.log(last["rows"])))
        said.append(
            {"width": int(width), "exponent": float(slope), "predicted": guess, "seen": float(last["mape_scaled"])}
        )
    return said


FIGURES = {f.__name__: f for f in (tasks, metadata, shots, pretrained, scaling, churn)}
MEASURED = ("spearman", "mape_scaled", "top10", "log2_change", "kendall_between", "same_of_top10")


def one(name, paths, target, steps, seed):
    return FIGURES[name](*read(paths, target), seed, steps)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("figure", choices=FIGURES)
    parser.add_argument("records", nargs="+", type=Path)
    parser.add_argument("--target", default="convolution_milo__A100")
    parser.add_argument("--steps", type=int, default=400, help="of a training; some figures take a share of it")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=1)
    options = parser.parse_args()
    figure = partial(one, options.figure, options.records, options.target, options.steps)
    table, _, _ = over_seeds(figure, options.seeds, measured=MEASURED, jobs=options.jobs)
    print(table.to_string(index=False, float_format=lambda x: f"{x:.3f}"))
    extra = {"power_law": power_law(table)} if options.figure == "scaling" else {}
    for law in extra.get("power_law", []):
        print(f"width {law['width']}: error ~ rows^{law['exponent']:.2f} foretells {law['predicted']:.3f}, "
              f"seen {law['seen']:.3f}")  # fmt: skip
    settings = {name: getattr(options, name) for name in ("figure", "target", "steps", "seeds")}
    print(as_json(table, **settings, **extra))


if __name__ == "__main__":
    main()
