"""Tables of pre-tuned configs on problems that they were not built from: one problem of a kernel left out at a time.

    python benchmarks/table.py                          # datasets/cpu-cpp, every kernel with at least four problems
    python benchmarks/table.py --data mine.sqlite

For each kernel and each of its problems a table is built from the other problems (`costmodel.table_building`) and picks
a config for the one left out. Regret is the pick's measured latency over the best measured one there, less one;
only configs that were measured there may be picked. Beside it: the best config of the nearest problem, the config that
is best on average over the other problems, and the default. "Answered" is `table.lookup` as a user has it, which says
"keep the default" where it is not confident: its regret with the default taken there, and how often it was worse than
the default by more than 5 %. Means over the problems of a kernel, then over kernels; geometric means in brackets.
Problems whose default was not measured count for the interpolation alone. The last line is one JSON document.

The weights of `table` (1 / (1 + d^2)), the median for what is missing and the limits of distance were chosen on
datasets/cpu-cpp, among about a hundred combinations that differed by up to a third in regret: expect less elsewhere.
"""

import argparse
import json
import math
from collections import defaultdict
from pathlib import Path

import numpy as np

from costmodel import table, table_building, workloads
from costmodel.cli.shared import read_measurements, workloads_of
from costmodel.dataset import kernel_identity
from costmodel.records import UserError
from costmodel.stats import bootstrap_interval

FEWEST = 4
WAYS = ("interpolated", "nearest problem", "best overall", "default", "answered")


def slowdowns(rows):
    """problem -> config -> latency over the best of the problem."""
    found = defaultdict(dict)
    for m in rows:
        found[m.variant.problem][m.variant.config] = m.latency_us
    return {p: {c: us / min(each.values()) for c, us in each.items()} for p, each in found.items()}


def left_out(rows, workload):
    """One row a problem: the slowdown of each way's pick there (NaN where it has none), and whether lookup answered."""
    slow = slowdowns(rows)
    found = []
    for problem, here in slow.items():
        (built,) = table_building.build(
            [m for m in rows if m.variant.problem != problem], {kernel_identity(rows[0].variant.kernel): workload}
        )
        others = {e.problem: slow[e.problem] for e in built.entries}
        candidates = [c for c in built.candidates if c in here]
        medians = {p: float(np.median(list(each.values()))) for p, each in others.items()}
        overall = {c: np.mean([math.log(each.get(c, medians[p])) for p, each in others.items()]) for c in candidates}
        expected = dict(zip(built.candidates, table.expected(built, problem.params), strict=True))
        near = nearest(problem, others, here)
        default = here.get(built.default, math.nan)
        answer = table.lookup(built, dict(problem.params), is_valid=here.__contains__)
        found.append(
            {
                "interpolated": here[min(candidates, key=expected.__getitem__)],
                "nearest problem": here[min(near, key=near.__getitem__)],
                "best overall": here[min(overall, key=overall.__getitem__)],
                "default": default,
                "answered": here[answer.config] if answer.config else default,
                "said": answer.config is not None,
                "outside": outside(problem, others),
            }
        )
    return found


def outside(problem, others):
    """log2 of how far the size that is farthest outside the others' range lies outside it; 0 inside."""
    points = np.array([table.point(p.params) for p in others])
    here = table.point(problem.params)
    return float(np.maximum(points.min(axis=0) - here, here - points.max(axis=0)).max(initial=0.0))


def nearest(problem, others, here):
    """config -> slowdown on the nearest problem that shares a config with this one."""
    point = table.point(problem.params)
    for other in sorted(others, key=lambda p: float(np.linalg.norm(table.point(p.params) - point))):
        if shared := {c: slow for c, slow in others[other].items() if c in here}:
            return shared
    raise UserError(f"got {problem} with no config that another problem measured; expected some in common")


def figures(by_kernel):
    """Means over kernels of the means over problems."""
    rows = [row for found in by_kernel.values() for row in found]
    with_default = {k: [r for r in found if not math.isnan(r["default"])] for k, found in by_kernel.items()}
    with_default = {k: found for k, found in with_default.items() if found}
    told = {}
    for way in WAYS:
        kept = by_kernel if way not in ("default", "answered") else with_default
        regrets = [np.mean([r[way] - 1 for r in found]) for found in kept.values()]
        logs = [np.mean([math.log(r[way]) for r in found]) for found in kept.values()]
        low, high = bootstrap_interval(regrets, np.mean, seed=0)
        told[way] = {"regret": float(np.mean(regrets)), "interval": [low, high], "geometric": math.expm1(np.mean(logs))}
    fair = [r for found in with_default.values() for r in found]
    said = [r for r in fair if r["said"]]
    told["worse than the default"] = {
        way: float(np.mean([r[way] > table.TIE * r["default"] for r in fair]))
        for way in ("interpolated", "nearest problem", "best overall")
    }
    told["worse than the default"]["answered, of the answers"] = float(
        np.mean([r["answered"] > table.TIE * r["default"] for r in said])
    )
    for name, kept in (
        ("interpolated, up to a factor of 2 outside", [r for r in fair if r["outside"] <= table.FARTHEST_OUTSIDE]),
        ("interpolated, beyond", [r for r in fair if r["outside"] > table.FARTHEST_OUTSIDE]),
    ):
        worse = [r["interpolated"] > table.TIE * r["default"] for r in kept]
        told["worse than the default"][name] = float(np.mean(worse))
    told["lookup"] = {
        "problems": len(fair), "answers": len(said),
        "regret of the answers": float(np.mean([r["answered"] - 1 for r in said])),
        "regret of the default there": float(np.mean([r["default"] - 1 for r in said])),
    }  # fmt: skip
    return {"kernels": len(by_kernel), "problems": len(rows), **told}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, action="append", help="stores or parquet folders")
    options = parser.parse_args()
    measurements = [
        m for m in read_measurements(options.data or [workloads.shipped("datasets") / "cpu-cpp"]) if m.status == "ok"
    ]
    ours = workloads_of(measurements)
    groups = defaultdict(list)
    for m in measurements:
        if kernel_identity(m.variant.kernel) in ours and ":" not in m.variant.kernel.name:
            groups[m.variant.kernel.name, m.device.name].append(m)
    by_kernel = {}
    for (name, _), rows in sorted(groups.items()):
        if len({m.variant.problem for m in rows}) >= FEWEST:
            by_kernel[name] = left_out(rows, ours[kernel_identity(rows[0].variant.kernel)])
    told = figures(by_kernel)
    print(f"{told['kernels']} kernels, {told['problems']} problems, each left out once")
    print("| pick | mean regret | 95 % | geometric mean |\n|---|---|---|---|")
    for way in WAYS:
        row = told[way]
        low, high = row["interval"]
        print(f"| {way} | {row['regret']:.0%} | {low:.0%} - {high:.0%} | {row['geometric']:.0%} |")
    for name in ("worse than the default", "lookup"):
        print(name + ": " + ", ".join(f"{key} {value:.3g}" for key, value in told[name].items()))
    print(json.dumps(told))


if __name__ == "__main__":
    main()
