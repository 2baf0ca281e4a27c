"""Library operators on GPUs that were not trained on: floor, grey box and boosted trees, one held-out GPU at a time.

    python benchmarks/operators.py TABLE.csv.gz ...                      # leave one GPU out
    python benchmarks/operators.py TABLE.csv.gz ... --test OTHER.csv.gz  # train on all tables, test on the others' rows
    python benchmarks/operators.py TABLE.csv.gz ... --fit                # write costmodel/floor_constants.json
    python benchmarks/operators.py TABLE.csv.gz ... --model FOLDER       # a network's predictions beside them

The tables are NeuSight's (bmm, linear, elementwise, softmax and layer norm of torch in f32 on P100, P4, T4, V100, A100;
`neusight/train/*.csv.gz`), or others with the same columns. Figures are mean absolute percentage errors over the rows
of the held-out GPU. Nothing that is fitted (grey-box constants, trees) has seen it, with these exceptions: the power
term's constant was read off the T4, so the fold that holds out the T4 flatters whatever uses the refined floor; the
form of the grey box and the trees' features were chosen on these very folds; --model is scored as it is, so its
training devices are the caller's business. With probes, one scale a device and class of operator is taken from that
many random rows (their median ratio) and the rest is scored; the median over draws is told. The rows of linear on the
P4 are left out of training and test: they run at a fifth of the card's rate, which its other tables contradict. No
shape is repeated, so the noise of the measurements is unknown. The last line is one JSON document.
"""

import argparse
import json
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.optimize import least_squares

from costmodel import floor, workloads
from costmodel.devices import peak_tflops
from costmodel.operator_trees import OperatorTrees
from costmodel.records import Device, Measurement

KINDS = ["bmm", "linear", "elementwise", "softmax", "ln"]
DEFECTIVE = ("linear", "Tesla P4")
DRAWS = 40
FIT_ROWS = 2500  # a device, for the constants; more change nothing
TREE_ROWS = 6000  # a device, for the trees

# Where the constants of `floor.grey_box_us` start, and their bounds.
PRODUCT = {
    "launch": (30, 5, 100), "power": (1, 0.7, 1.6), "input": (1.2, 1, 4), "output": (1.3, 1, 4), "norm": (3, 1, 8),
    "depth": (16, 0.5, 400), "split": (0.5, 0.05, 8),
    **{f"tile_{m}x{n}": (1 / share, 0.5, 40) for m, n, share in floor.TILES},
}  # fmt: skip
STREAM = {"launch": (20, 1, 100), "memory_once": (1.3, 1, 3)}
ROWS = {**STREAM, "memory": (1.4, 1, 3), "slope": (1, 0.3, 3), "middle": (0.0, -3, 3)}
START = {
    "bmm": PRODUCT,
    "linear": PRODUCT,
    "elementwise": STREAM,
    "softmax": {**ROWS, "reread": (0.4, 0.01, 1)},  # three passes over a row instead of one, beside one write
    "ln": {**ROWS, "reread": (0.4, 0.01, 0.5)},  # two passes instead of one
}


@dataclass
class Table:
    """The rows of one class of operator on one device."""

    kind: str
    device: Device
    rows: list[Measurement]

    def __post_init__(self) -> None:
        problems = [m.variant.problem for m in self.rows]
        if not all(floor.has_estimate(p, self.device) for p in problems):
            sys.exit(
                f"got {self.kind} on {self.device.name!r}, which has no full sheet; add it to costmodel/devices.json"
            )
        self.us = np.array([m.latency_us for m in self.rows])
        self.parts = floor.parts(problems, self.device)
        self.floor_us = np.array([floor.floor_us(p, self.device) for p in problems])
        compute = np.array([p.flops for p in problems]) / (peak_tflops(self.device, "f32") * 1e6)
        self.roofline_us = np.maximum(compute, self.parts["memory_us"])


def load(files: list[Path], *, drop_defective: bool) -> list[Table]:
    records = workloads.load_module(workloads.shipped("collectors") / "tuning_records.py")
    groups: dict[tuple[str, Device], list[Measurement]] = defaultdict(list)
    for path in files:
        for m in records.read(path):
            kind = floor.op_class(m.variant.problem)
            if kind and not (drop_defective and (kind, m.device.name) == DEFECTIVE):
                groups[kind, m.device].append(m)
    return [Table(kind, device, rows) for (kind, device), rows in groups.items()]


def fit(tables: list[Table]) -> dict[str, float]:
    """Grey-box constants of one class: robust least squares in log time, the same number of rows of each device."""
    kind, rng = tables[0].kind, np.random.default_rng(0)
    picked = [np.sort(rng.permutation(len(t.us))[:FIT_ROWS]) for t in tables]
    part = {
        name: np.concatenate([t.parts[name][i] for t, i in zip(tables, picked, strict=True)])
        for name in tables[0].parts
    }
    log_us = np.log(np.concatenate([t.us[i] for t, i in zip(tables, picked, strict=True)]))
    start = START[kind]
    is_log = np.array([name != "middle" for name in start])

    def packed(values):
        values = np.array(values, float)
        return np.where(is_log, np.log(np.where(is_log, values, 1.0)), values)

    def unpacked(x):
        return dict(zip(start, np.where(is_log, np.exp(x), x).tolist(), strict=True))

    first, low, high = (packed([bound[i] for bound in start.values()]) for i in range(3))

    def residuals(x):  # the second part keeps constants that the rows do not determine near where they started
        error = np.log(floor.grey_box_us(kind, part, unpacked(x))) - log_us
        return np.concatenate([error, 1e-3 * (x - first) * np.sqrt(len(log_us))])

    return unpacked(least_squares(residuals, first, bounds=(low, high), loss="soft_l1", f_scale=0.05, max_nfev=100).x)


def some_rows(table: Table, seed: int) -> list[Measurement]:
    return [table.rows[i] for i in np.random.default_rng(seed).permutation(len(table.rows))[:TREE_ROWS]]


def mape(predicted_us: np.ndarray, us: np.ndarray) -> float:
    return float(100 * np.mean(np.abs(predicted_us / us - 1)))


def with_probes(predicted_us: np.ndarray, us: np.ndarray, probes: int) -> float:
    """MAPE of the rows that were not probed, the median over draws."""
    if not probes:
        return mape(predicted_us, us)
    if len(us) <= probes:
        return float("nan")
    rng, errors = np.random.default_rng(0), []
    for _ in range(DRAWS):
        order = rng.permutation(len(us))
        seen, rest = order[:probes], order[probes:]
        scale = np.exp(np.median(np.log(us[seen] / predicted_us[seen])))
        errors.append(mape(scale * predicted_us[rest], us[rest]))
    return float(np.median(errors))


def predictions(train: list[Table], test: Table, seeds: int, model) -> dict[str, list[np.ndarray]]:
    """{method: one array of microseconds a seed}"""
    grey = floor.grey_box_us(test.kind, test.parts, fit(train))
    variants = [m.variant for m in test.rows]
    trees = []
    for seed in range(seeds):
        forest = OperatorTrees(seed=seed)
        forest.update([m for table in train for m in some_rows(table, seed)])
        trees.append(np.array([p.median_us for p in forest.predict(variants, test.device)]))
    told = {
        "roofline": [test.roofline_us],
        "floor": [test.floor_us],
        "grey box": [grey],
        "trees": trees,
        "trees + grey box": [np.sqrt(one * grey) for one in trees],
    }
    if model is not None:
        network = np.array([p.median_us for p in model.predict(variants, test.device)])
        told |= {"network": [network], "network + trees + grey box": [np.cbrt(network * grey * one) for one in trees]}
    return told


def report(rows: list[dict]) -> None:
    """MAPE by class of operator, the mean over its held-out devices, then device by device."""
    table = pd.DataFrame(rows)
    methods = list(dict.fromkeys(table.method))
    with pd.option_context("display.width", 200, "display.max_columns", 40):
        for probes, part in table.groupby("probes"):
            print(f"\nMAPE, {probes} probes")
            wide = part.pivot_table(index="method", columns="op", values="mape")
            print(wide.reindex(index=methods, columns=[k for k in KINDS if k in wide]).round(1).to_string())
        print("\nMAPE by held-out device, no probes")
        wide = table[table.probes == 0].pivot_table(index=["op", "method"], columns="device", values="mape")
        order = [(kind, method) for kind in KINDS for method in methods if (kind, method) in wide.index]
        print(wide.reindex(index=pd.MultiIndex.from_tuples(order, names=["op", "method"])).round(1).to_string())


def write_constants(tables: list[Table]) -> None:
    fitted = {kind: fit([t for t in tables if t.kind == kind]) for kind in KINDS if any(t.kind == kind for t in tables)}
    names = sorted({t.device.name for t in tables})
    document = {
        "how": "benchmarks/operators.py --fit: robust least squares of log latency, as many rows of each device",
        "rows": f"f32 operators of torch 2.1 (NeuSight's tables) on {', '.join(names)}; without linear on the P4",
        "constants": {kind: {name: round(value, 4) for name, value in table.items()} for kind, table in fitted.items()},
    }
    path = Path(floor.__file__).with_name("floor_constants.json")
    path.write_text(json.dumps(document, indent=1) + "\n")
    print(f"wrote {path}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "tables", nargs="+", type=Path, help="rows to train on; without --test one GPU is held out in turn"
    )
    parser.add_argument("--test", nargs="+", type=Path, default=[], help="rows to score instead, of any GPUs")
    parser.add_argument("--fit", action="store_true", help="write costmodel/floor_constants.json and stop")
    parser.add_argument("--model", type=Path, help="a saved network to score beside the others")
    parser.add_argument("--seeds", type=int, default=3, help="of the trees")
    parser.add_argument("--probes", nargs="+", type=int, default=[0, 8], help="measured rows a device and class")
    options = parser.parse_args()
    tables = load(options.tables, drop_defective=True)
    print("left out: linear on the Tesla P4 (its rows run at a fifth of the card's rate)")
    if options.fit:
        write_constants(tables)
        return
    model = None
    if options.model:
        from costmodel.predictor import NeuralCostModel

        model = NeuralCostModel.from_pretrained(options.model)
    rows = []
    for test in load(options.test, drop_defective=False) if options.test else tables:
        train = [t for t in tables if t.kind == test.kind and (options.test or t.device != test.device)]
        if not train:
            continue
        for method, answers in predictions(train, test, options.seeds, model).items():
            for probes in options.probes:
                figures = [with_probes(one, test.us, probes) for one in answers]
                rows.append(
                    {
                        "op": test.kind, "device": test.device.name, "method": method, "probes": probes,
                        "rows": len(test.us), "seeds": len(answers), "mape": round(float(np.mean(figures)), 2),
                    }
                )  # fmt: skip
        mine = [row for row in rows if (row["op"], row["device"]) == (test.kind, test.device.name)]
        done = {row["method"]: row["mape"] for row in mine if row["probes"] == options.probes[0]}
        print(test.kind, test.device.name, len(test.us), done, flush=True)
    report(rows)
    print(json.dumps({"rows": rows}))


if __name__ == "__main__":
    main()
