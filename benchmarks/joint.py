"""How errors of predictions on one space go together: what `costmodel.joint.CORRELATION` should be.

    python benchmarks/joint.py                          # the shipped model, kernels of datasets/cpu-cpp it never saw

For each correlation two kinds of statements are checked against what was measured. "Pairs": of two random configs of a
space, the probability that one is faster, in five bins: what was stated, and how often it was. "Picks": the probability
that the model's first choice is within 5 % of the best of the space, and how often it is. The Brier score is the mean
squared difference of statement and outcome; lower is better. The last line is one JSON document.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from costmodel import workloads
from costmodel.dataset import groups, read_parquet
from costmodel.joint import probability_near_best
from costmodel.predictor import NeuralCostModel
from costmodel.records import UserError
from costmodel.sittings import combine
from costmodel.stats import reliability

CORRELATIONS = (0.0, 0.3, 0.5, 0.6, 0.7, 0.8, 0.95)
PAIRS = 100  # a space
FEWEST = 40  # configs of a space


def recorded(data, model):
    """(predictions, latencies) of each space of a kernel that the model was not trained on."""
    seen = model.familiarity.kernels if model.familiarity else frozenset()
    rows = [m for m in combine(read_parquet(data)) if m.status == "ok" and m.variant.kernel.identity not in seen]
    spaces = [group for group in groups(rows) if len(group.measurements) >= FEWEST]
    if not spaces:
        raise UserError(f"got no space in {data} of a kernel that the model was not trained on; expected some")
    for space in spaces:
        variants = [m.variant for m in space.measurements]
        yield model.predict(variants, space.device), np.array([m.latency_us for m in space.measurements])


def scores(spaces, correlation):
    rng = np.random.default_rng(0)
    pairs, picks = [], []
    for told, us in spaces:
        for a, b in rng.integers(len(told), size=(PAIRS, 2)):
            if a != b:
                pairs.append((told[a].probability_faster_than(told[b], correlation=correlation), us[a] < us[b]))
        pick = min(range(len(told)), key=lambda i: told[i].median_us)
        picks.append((probability_near_best(told, pick, correlation=correlation), us[pick] <= 1.05 * us.min()))
    stated, came = np.array(pairs, float).T
    chance, hit = np.array(picks, float).T
    return {
        "correlation": correlation,
        "pairs": [[round(x, 3) for x in one[:2]] for one in reliability(stated, came)],
        "pairs_brier": float(((stated - came) ** 2).mean()),
        "picks_stated": float(chance.mean()), "picks_came": float(hit.mean()),
        "picks_brier": float(((chance - hit) ** 2).mean()),
    }  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a model folder; the shipped model if left out")
    parser.add_argument("--data", default=str(workloads.shipped("datasets") / "cpu-cpp"))
    options = parser.parse_args()
    spaces = list(recorded(options.data, NeuralCostModel.from_pretrained(options.model)))
    rows = [scores(spaces, correlation) for correlation in CORRELATIONS]
    print(f"{len(spaces)} spaces\n| correlation | pairs: stated / came | Brier | picks: stated / came | Brier |")
    print("|---|---|---|---|---|")
    for row in rows:
        bins = ", ".join(f"{stated:.2f} / {came:.2f}" for stated, came in row["pairs"])
        picks = f"{row['picks_stated']:.3f} / {row['picks_came']:.3f}"
        print(f"| {row['correlation']} | {bins} | {row['pairs_brier']:.4f} | {picks} | {row['picks_brier']:.3f} |")
    print(json.dumps({"spaces": len(spaces), "rows": rows}))


if __name__ == "__main__":
    main()
