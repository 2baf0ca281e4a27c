"""How many benchmarks until a search is within 5 % of the optimum: replayed on brute-forced spaces of held-out kernels.

    python benchmarks/search_replay.py --model costmodel/pretrained --seeds 10 --budget 100

The model must not have seen the kernels. Opponents: random search, annealing (our own and Kernel Tuner's; pip install
kernel_tuner), a Gaussian process from scratch; beside them the model's ranking alone and the guarded search. The last
line is one JSON document.
"""

import argparse
import json
from pathlib import Path

from costmodel import dataset, replay, report, strategies, workloads
from costmodel.predictor import NeuralCostModel
from costmodel.records import UserError
from costmodel.sittings import combine

SPACES = ("batched_matmul", "histogram", "layer_norm", "stencil3d")


def recorded(data, names):
    defaults = {w.kernel.identity: w.default for w in map(workloads.load, names)}
    rows = [m for m in combine(dataset.read_parquet(data)) if m.variant.kernel.name in names]
    sizes = {}
    for m in rows:
        key = (m.variant.kernel.name, m.variant.problem)
        sizes[key] = sizes.get(key, 0) + 1
    device = rows[0].device
    whole = {
        name: len(list(workloads.load(name).space.configs(next(iter(workloads.load(name).problems.values())), device)))
        for name in names
    }
    brute = [m for m in rows if sizes[m.variant.kernel.name, m.variant.problem] >= 0.98 * whole[m.variant.kernel.name]]
    return replay.spaces(brute, defaults, min_size=200)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", default=str(workloads.shipped("datasets") / "cpu-cpp"))
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--budget", type=int, default=200)
    parser.add_argument("--plot", type=Path, help="PNG of best-so-far curves")
    options = parser.parse_args()
    model = NeuralCostModel.from_pretrained(options.model)
    spaces = recorded(options.data, SPACES)
    seen = [s.name for s in spaces if model.familiarity and s.kernel.identity in model.familiarity.kernels]
    if seen:
        raise UserError(f"the model was trained on {', '.join(seen)}; expected one that was not")
    prior = strategies.prior_of([model])
    chosen = {
        "random search": strategies.random_search,
        "Kernel Tuner's annealing": strategies.kernel_tuner("simulated_annealing"),
        "annealing": strategies.metropolis,
        "Gaussian process": strategies.guided(lambda space: []),
        "ranking alone": strategies.ranked(prior),
        "search, not guarded": strategies.guided(prior, guarded=False),
        "search": strategies.guided(prior),
    }
    done = list(replay.replay(spaces, chosen, budget=options.budget, seeds=options.seeds))
    runs = replay.table(done)
    if options.plot:
        report.write_png(report.curves_figure(done), options.plot)
    table = replay.summarise(runs, never=2 * options.budget)
    per_space = runs.replace(float("inf"), 2 * options.budget).pivot_table(
        index="space", columns="strategy", values="to_5_percent", aggfunc="median", sort=False
    )
    print(per_space.to_string())
    print(table.round(3).to_string())
    document = {
        "spaces": [s.name for s in spaces],
        "seeds": options.seeds,
        "summary": json.loads(table.round(4).to_json(orient="index")),
        "per_space": json.loads(per_space.to_json(orient="index")),
    }
    print(json.dumps(document))


if __name__ == "__main__":
    main()
