"""Our strategy in Kernel Tuner against its own, all through the package in its simulation mode: benchmarks to 5 %.

    python benchmarks/kernel_tuner_strategy.py RECORDS/*.json.gz --spaces milo pnpoly --seeds 10
    python benchmarks/kernel_tuner_strategy.py RECORDS/*.json.gz --folder runs/unseen          # networks as priors
    python benchmarks/kernel_tuner_strategy.py RECORDS/*.json.gz --seeds 20 --budget 1000 --leak   # annealing alone

RECORDS are Kernel Tuner caches or T4 results. What ranks has seen nothing of a space's device: boosted trees fitted to
the records of all other devices, and the tables of the devices that ran the very same space; with --folder, in place of
the trees, the networks that benchmarks/unseen_devices.py keeps there, trained without the device. The opponents scale
their schedules to the budget that they are told. A failed config costs a benchmark. A run that never gets within 5 % of
the optimum counts as twice the budget. The last line is one JSON document.

--leak says why figures of annealing that others took may be far lower. A search space object of Kernel Tuner remembers
whose neighbours were listed, and `get_random_neighbor` prefers those. A user's `tune_kernel` makes a new object, as we
do for each run; who shares one between runs lets the next run walk where the last one was cold. Beside a fresh object:
one that a run with another seed used before, on the same latencies, and on shuffled ones.
"""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np

from costmodel import replay, stats, strategies, workloads
from costmodel.baselines import BoostedTrees
from costmodel.integrations.kernel_tuner import strategy
from costmodel.predictor import NeuralCostModel
from costmodel.records import UserError

OPPONENTS = ("simulated_annealing", "genetic_algorithm")
STEPS = (40, 200)  # ours is not told its budget: where the first was enough, the second would begin alike


class Told:
    """A prior of a recorded space: Kernel Tuner tells a strategy names and values alone, so answers go by those."""

    def __init__(self, space, predictions):
        self.by_config = {
            frozenset(m.variant.config.params): p for m, p in zip(space.measurements, predictions, strict=True)
        }

    def predict(self, variants, device):
        return [self.by_config[frozenset(variant.config.params)] for variant in variants]

    def update(self, measurements):
        pass


def ours(space, priors, seed, budget):
    """Evaluations to 5 %, or infinity."""
    chosen = strategy(device=space.device.name, priors=[Told(space, told) for told in priors(space)], seed=seed)
    run = strategies.kernel_tuner(chosen)
    reached = replay.NEVER
    for evaluations in (*STEPS, budget):
        trace = run(space, min(evaluations, budget), seed)
        reached = replay.evaluations_to(trace.taken, space.optimum_us, 0.05)
        if reached < replay.NEVER or evaluations >= budget:
            break
    return reached


def network_of(folder, space):
    """Predictions of the network that never saw the space's device."""
    found = [path for path in folder.iterdir() if space.device.name.replace(" ", "-") in path.name.split("+")]
    if not found:
        raise UserError(
            f"got no model in {folder} that left out {space.device.name}; benchmarks/unseen_devices.py makes it"
        )
    model = NeuralCostModel.from_pretrained(found[0])
    return [model.predict([m.variant for m in space.measurements], space.device)]


def annealing_after_a_run(space, before, seed, budget):
    """Evaluations of annealing to 5 % with the search space object that a run on the space `before` used."""
    earlier, counted = (strategies._Simulation(one) for one in (before, space))
    earlier._searchspace = counted._searchspace
    with mock.patch.object(strategies, "copy", SimpleNamespace(deepcopy=lambda one: one)):
        earlier.run("simulated_annealing", {}, budget, 1_000_000 + seed)
        trace = counted.run("simulated_annealing", {}, budget, seed)
    return replay.evaluations_to(trace.taken, space.optimum_us, 0.05)


def leak(space, seeds, budget):
    """Median evaluations of annealing to 5 %, by what its search space object was used for before."""
    order = np.random.default_rng(0).permutation(len(space.measurements))
    told = [space.measurements[i] for i in order]
    shuffled = [
        replace(m, status=t.status, samples_us=t.samples_us, error=t.error)
        for m, t in zip(space.measurements, told, strict=True)
    ]
    fresh, other = strategies.kernel_tuner("simulated_annealing"), replace(space, measurements=tuple(shuffled))
    counts = {
        "fresh": [
            replay.evaluations_to(fresh(space, budget, seed).taken, space.optimum_us, 0.05) for seed in range(seeds)
        ],
        "after a run": [annealing_after_a_run(space, space, seed, budget) for seed in range(seeds)],
        "after a run on shuffled latencies": [
            annealing_after_a_run(space, other, seed, budget) for seed in range(seeds)
        ],
    }
    return {name: float(np.median(np.minimum(each, 2 * budget))) for name, each in counts.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records", nargs="+", type=Path)
    parser.add_argument("--spaces", nargs="*", default=[""], help="replay those whose name has one of these words")
    parser.add_argument("--folder", type=Path, help="networks of benchmarks/unseen_devices.py")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--budget", type=int, default=400)
    parser.add_argument("--leak", action="store_true", help="annealing alone, with search space objects used before")
    options = parser.parse_args()
    reader = workloads.load_module(workloads.shipped("collectors") / "tuning_records.py")
    rows = [m for path in options.records for m in reader.read(path)]
    spaces = [s for s in replay.spaces(rows, {}, min_size=100) if any(word in s.name for word in options.spaces)]
    if options.leak:
        for space in spaces:
            told = leak(space, options.seeds, options.budget)
            print(json.dumps({"space": space.name, "device": space.device.name, **told}), flush=True)
        return
    learned = strategies.trained_elsewhere(lambda: BoostedTrees(seed=0), rows)
    tables = strategies.tables_of_others(rows)
    never, table = 2 * options.budget, []
    for space in spaces:
        first = network_of(options.folder, space) if options.folder else learned(space)
        counts = {
            "ours": [ours(space, lambda s, f=first: [*tables(s), *f], n, options.budget) for n in range(options.seeds)],
            "ours, no tables": [ours(space, lambda s, f=first: f, n, options.budget) for n in range(options.seeds)],
        }
        for name in OPPONENTS:
            search = strategies.kernel_tuner(name)
            traces = [search(space, options.budget, seed) for seed in range(options.seeds)]
            counts[name] = [replay.evaluations_to(trace.taken, space.optimum_us, 0.05) for trace in traces]
        medians = {name: float(np.median(np.minimum(each, never))) for name, each in counts.items()}
        table.append({"space": space.kernel.name, "device": space.device.name, **medians})
        print(table[-1], file=sys.stderr)
    names = ["ours", "ours, no tables", *OPPONENTS]
    document = {
        "seeds": options.seeds,
        "budget": options.budget,
        "prior": "networks" if options.folder else "boosted trees",
        "geometric_mean": {name: round(stats.geometric_mean([row[name] for row in table]), 2) for name in names},
        "fewer_than_annealing": {n: sum(r[n] < r["simulated_annealing"] for r in table) for n in names[:2]},
        "spaces": table,
    }
    for row in table:
        print(f"{row['space']:20} {row['device']:26}", *(f"{name}: {row[name]:g}" for name in names), sep="  ")
    print(json.dumps(document))


if __name__ == "__main__":
    main()
