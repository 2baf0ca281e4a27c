"""Ways to search a recorded space: ours, the priors alone, and the opponents at their best known settings.

`strategy(name, ...)` gives one by name. Kernel Tuner's own run through its package in simulation mode (pip install
kernel_tuner); the rest needs nothing beyond this project.
"""

from __future__ import annotations

import copy
import random
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import numpy as np
from sklearn.ensemble import ExtraTreesRegressor

from costmodel.baselines import BoostedTrees, MeanRank, NearestTable
from costmodel.dataset import SpaceKey
from costmodel.features import config_features
from costmodel.records import CostModel, Measurement, Prediction, UserError
from costmodel.replay import RecordedRunner, RecordedSpace, Strategy, Trace
from costmodel.search import BATCH, Tuner

Priors = Callable[[RecordedSpace], Sequence[Sequence[Prediction]]]


# --------------------------------------------------------------------------------------------------------------- ours


def guided(priors: Priors, *, guarded: bool = True) -> Strategy:
    """The Tuner with these priors; where there is none, a Gaussian process from scratch."""

    def search(space: RecordedSpace, budget: int, seed: int) -> Trace:
        runner, told = RecordedRunner(space), priors(space)
        default = space.default if told else None
        tuner = Tuner([m.variant for m in space.measurements], told, default=default, guarded=guarded, seed=seed)
        taken: list[Measurement] = []
        claims = []
        while len(taken) < budget:
            batch = tuner.ask(min(BATCH, budget - len(taken)))
            if not batch:
                break
            results = runner.measure(batch)
            tuner.tell(results)
            taken += results
            claims.append((len(taken), tuner.p_better_remains()))
        return Trace(tuple(taken), tuple(claims))

    return Strategy(search)


def ranked(priors: Priors) -> Strategy:
    """Measure in the order of the mean prediction, what will probably fail last, and learn nothing on the way."""

    def search(space: RecordedSpace, budget: int, seed: int) -> Trace:
        told = priors(space)
        log2_us = np.log2([[p.median_us for p in prior] for prior in told]).mean(axis=0)
        fails = np.array([[p.p_fail for p in prior] for prior in told]).mean(axis=0) > 0.5
        return Trace(tuple(space.measurements[i] for i in np.lexsort((log2_us, fails))[:budget]))

    return Strategy(search, seeded=False)


def prior_of(models: Sequence[CostModel]) -> Priors:
    """Predictions of each model, computed once per space."""
    return _kept(lambda space: [m.predict([x.variant for x in space.measurements], space.device) for m in models])


def trained_elsewhere(make: Callable[[], CostModel], measurements: Sequence[Measurement]) -> Priors:
    """Predictions of a model that has seen `measurements` but those of the space's own device, nor any of its name.

    A table of another space says nothing here: without the same kernel and problem on another device, UserError.
    """

    def predict(space: RecordedSpace) -> list[list[Prediction]]:
        model = make()
        variants = [m.variant for m in space.measurements]
        model.update(space.others(measurements))
        if isinstance(model, NearestTable | MeanRank) and not model.knows(variants[0]):
            raise UserError(
                f"got no other device's measurements of {space.name}, expected some; give them with --store"
            )
        return [model.predict(variants, space.device)]

    return _kept(predict)


def tables_of_others(measurements: Sequence[Measurement]) -> Priors:
    """The tables of all other devices that measured the same space, nearest first; none where there is none."""

    def predict(space: RecordedSpace) -> list[list[Prediction]]:
        tables = NearestTable()
        tables.update(space.others(measurements))
        return tables.each([m.variant for m in space.measurements], space.device)

    return _kept(predict)


def _kept(priors: Callable[[RecordedSpace], list[list[Prediction]]]) -> Priors:
    cache: dict[SpaceKey, list[list[Prediction]]] = {}

    def predict(space: RecordedSpace) -> list[list[Prediction]]:
        if space.key not in cache:
            cache[space.key] = priors(space)
        return cache[space.key]

    return predict


# ---------------------------------------------------------------------------------------------------------- opponents


def _random(space: RecordedSpace, budget: int, seed: int) -> Trace:
    order = np.random.default_rng(seed).permutation(len(space.measurements))[:budget]
    return Trace(tuple(space.measurements[i] for i in order))


random_search = Strategy(_random)


def _metropolis(space: RecordedSpace, budget: int, seed: int) -> Trace:
    """Moves to candidates that differ in one or two parameters (Kirkpatrick et al. 1983); a repeated visit is free.

    Temperature falls geometrically from 1 to 0.001 over the budget, on relative slowdown; a walk that is stuck for as
    long as its neighbourhood is large starts again from a random candidate. On small spaces and budgets it is far ahead
    of Kernel Tuner's annealing, so that one alone would be a weak opponent.
    """
    rng = np.random.default_rng(seed)
    words = [[str(value) for _, value in m.variant.config.params] for m in space.measurements]
    codes = np.stack([np.unique(column, return_inverse=True)[1] for column in np.array(words).T], axis=1)
    latencies = np.nan_to_num([m.latency_us for m in space.measurements], nan=np.inf)
    budget = min(budget, len(latencies))
    here, stuck = int(rng.integers(len(latencies))), 0
    visited = {here: None}  # in order
    while len(visited) < budget:
        changed = (codes != codes[here]).sum(axis=1)
        near = np.flatnonzero((changed == 1) if rng.random() < 0.8 and (changed == 1).any() else (changed <= 2))
        there = int(rng.choice(near))
        stuck = stuck + 1 if there in visited else 0
        visited.setdefault(there)
        temperature = 0.001 ** (len(visited) / budget)
        if np.isinf(latencies[here]):
            accepted = True
        else:
            worse = latencies[there] / latencies[here] - 1
            accepted = worse <= 0 or rng.random() < np.exp(-worse / temperature)
        here = there if accepted else here
        if stuck > len(near):
            here, stuck = int(rng.integers(len(latencies))), 0
            visited.setdefault(here)
    return Trace(tuple(space.measurements[i] for i in list(visited)[:budget]))


metropolis = Strategy(_metropolis)


def extra_trees(priors: Priors | None = None) -> Strategy:
    """Extremely randomised trees (Geurts et al. 2006) learned during the search: the honest in-search opponent.

    32 trees on the configs' features, lowest mean - 0.5 standard deviations first, 5 a batch and 10 from 50 evaluations
    on; it starts with 10 random candidates. A prior's log2 latency is one more feature, and 5 of the first 10 are then
    its favourites. A failure is learned as 1.5 times the slowest success seen.
    """

    def search(space: RecordedSpace, budget: int, seed: int) -> Trace:
        size = len(space.measurements)
        features = config_features([m.variant for m in space.measurements]).astype(np.float32)
        latencies = np.array([m.latency_us for m in space.measurements])
        rng = np.random.RandomState(seed)
        order: list[int] = []
        if priors is not None:
            prior = np.log2([[p.median_us for p in one] for one in priors(space)]).mean(axis=0)
            fails = np.array([[p.p_fail for p in one] for one in priors(space)]).mean(axis=0) > 0.5
            prior = np.where(fails, prior.max() + 1.0, prior)
            features = np.column_stack([features, prior.astype(np.float32)])
            order = [int(i) for i in np.argsort(prior, kind="stable")[:5]]
        rest = np.setdiff1d(np.arange(size), order)
        order += [int(i) for i in rng.choice(rest, min(10 - len(order), len(rest)), replace=False)]
        while len(order) < min(budget, size):
            us = latencies[order]
            worst = np.nanmax(us) if np.isfinite(us).any() else 1.0
            target = np.log(np.where(np.isfinite(us), us, 1.5 * worst))
            forest = ExtraTreesRegressor(32, random_state=seed, n_jobs=1).fit(features[order], target)
            told = np.array([tree.tree_.predict(features)[:, 0] for tree in forest.estimators_])
            score = told.mean(axis=0) - 0.5 * told.std(axis=0)
            score[order] = np.inf
            left = min(5 if len(order) < 50 else 10, size - len(order))
            order += [int(i) for i in np.argsort(score, kind="stable")[:left]]
        return Trace(tuple(space.measurements[i] for i in order[:budget]))

    return Strategy(search)


# ------------------------------------------------------------------------------------ Kernel Tuner, through its package

_FIRST_SEED = 1000  # published figures of Kernel Tuner's strategies on these spaces start here


def kernel_tuner(name: str, **options: Any) -> Strategy:
    """A strategy of Kernel Tuner in its simulation mode, by its own name; its budget schedule is told the budget.

    The space is exactly what was recorded: a failure stays in it and costs an evaluation, which `tune_cache` of the
    package would leave out. A repeated visit costs nothing. Strategies draw from Python's and NumPy's global state,
    which is seeded before a run and restored after it.
    """
    simulations: dict[SpaceKey, _Simulation] = {}

    def search(space: RecordedSpace, budget: int, seed: int) -> Trace:
        if space.key not in simulations:
            simulations[space.key] = _Simulation(space)
        return simulations[space.key].run(name, options, min(budget, len(space.measurements)), seed)

    return Strategy(search)


class _Simulation:
    """A recorded space as Kernel Tuner sees it: tunable parameters, membership as the restriction, a cache."""

    def __init__(self, space: RecordedSpace) -> None:
        try:
            from constraint import FunctionConstraint
            from kernel_tuner import util
            from kernel_tuner.searchspace import Searchspace
        except ImportError as error:
            raise UserError(
                f"this strategy runs through Kernel Tuner, which is not installed ({error}); pip install kernel_tuner"
            ) from error
        self._name = space.kernel.name
        configs = [m.variant.config.as_dict() for m in space.measurements]
        names = list(configs[0])
        if not names or any(set(config) != set(names) for config in configs):
            raise UserError(
                f"got {space.name}, whose configs differ in their parameters; Kernel Tuner wants equal ones"
            )
        listed = dict(space.kernel.schema)
        self._params = {
            name: list(listed.get(name) or dict.fromkeys(config[name] for config in configs)) for name in names
        }
        keys = [self._key(config) for config in configs]
        self._recorded = dict(zip(keys, space.measurements, strict=True))
        self._cache = {
            key: self._entry(config, m, util.RuntimeFailedConfig)
            for key, config, m in zip(keys, configs, space.measurements, strict=True)
        }

        def is_recorded(*values: Any) -> bool:
            return ",".join(map(str, values)) in self._recorded

        self._searchspace = Searchspace(self._params, [FunctionConstraint(is_recorded)], 10**9)
        if self._searchspace.size != len(space.measurements):
            raise UserError(
                f"got {space.name}, of which Kernel Tuner sees {self._searchspace.size} of {len(space.measurements)} "
                "configs; expected values that the kernel's schema lists"
            )

    def _key(self, config: dict[str, Any]) -> str:
        return ",".join(str(config[name]) for name in self._params)

    @staticmethod
    def _entry(config: dict[str, Any], measured: Measurement, failed: type) -> dict[str, Any]:
        """A record of the cache, its times in ms; an error stands in place of the time."""
        entry = {**config, "compile_time": 0.0, "verification_time": 0.0, "benchmark_time": 0.0}
        if measured.status == "ok":
            return {**entry, "time": measured.latency_us / 1e3}
        error = failed()
        return {**entry, "time": error, "__error__": error}

    def run(self, strategy: str, options: dict[str, Any], budget: int, seed: int) -> Trace:
        import kernel_tuner

        with self._in_memory(copy.deepcopy(self._searchspace)), _seeded(_FIRST_SEED + seed), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the stand-in kernel lacks arguments, and annealing overflows as it cools
            results, _ = kernel_tuner.tune_kernel(
                self._name, f"__global__ void {self._name}() {{}}", 1, [],
                {name: list(values) for name, values in self._params.items()},
                lang="CUDA", quiet=True, cache="in-memory.json", simulation_mode=True, strategy=strategy,
                strategy_options={"max_fevals": budget, **options},
            )  # fmt: skip
        order = dict.fromkeys(self._key(result) for result in results)
        return Trace(tuple(self._recorded[key] for key in order))

    @contextmanager
    def _in_memory(self, searchspace: Any) -> Iterator[None]:
        """Hand the package the cache and the search space it would otherwise read and build at every run.

        A search space remembers which neighbours it gave out, so every run gets a fresh copy.
        """
        from kernel_tuner import interface, util

        with (
            mock.patch.object(util, "process_cache", return_value=self._cache),
            mock.patch.object(util, "close_cache", return_value=None),
            mock.patch.object(interface, "Searchspace", return_value=searchspace),
        ):
            yield


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    python, numpy = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed)
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


# ------------------------------------------------------------------------------------------------------------ by name


@dataclass(frozen=True)
class Sources:
    """What strategies draw on. `model` loads the network where one is asked for; `elsewhere`, measurements of any
    device, of which a space's own are never shown."""

    model: Callable[[], CostModel]
    elsewhere: Sequence[Measurement] = ()

    def table(self) -> Priors:
        return trained_elsewhere(NearestTable, self.elsewhere)

    def mean_rank(self) -> Priors:
        return trained_elsewhere(MeanRank, self.elsewhere)

    def trees(self) -> Priors:
        if not self.elsewhere:
            raise UserError("boosted-trees learn from other devices' measurements and got none; give --store")
        return trained_elsewhere(lambda: BoostedTrees(seed=0), self.elsewhere)


def _costmodel(sources: Sources) -> Strategy:
    model, tables = prior_of([sources.model()]), tables_of_others(sources.elsewhere)
    return guided(lambda space: [*tables(space), *model(space)])


STRATEGIES: dict[str, tuple[str, Callable[[Sources], Strategy]]] = {
    "costmodel": ("our guarded search, led by the model and by the other devices' tables", _costmodel),
    "rank": ("the model's ranking alone", lambda s: ranked(prior_of([s.model()]))),
    "random": ("random search", lambda s: random_search),
    "annealing": ("Kernel Tuner's simulated annealing", lambda s: kernel_tuner("simulated_annealing")),
    "metropolis": ("simulated annealing of our own, stronger on small spaces", lambda s: metropolis),
    "genetic": ("Kernel Tuner's genetic algorithm", lambda s: kernel_tuner("genetic_algorithm")),
    "greywolf": ("Kernel Tuner's adaptive tabu grey wolf", lambda s: kernel_tuner("adaptive_tabu_greywolf")),
    "gaussian-process": ("our search without any prior", lambda s: guided(lambda space: [])),
    "extra-trees": ("trees learned during the search", lambda s: extra_trees()),
    "extra-trees-prior": ("the same, with the other devices' mean rank", lambda s: extra_trees(s.mean_rank())),
    "nearest-table": ("the nearest device's ranking", lambda s: ranked(s.table())),
    "mean-rank": ("the mean rank of the other devices", lambda s: ranked(s.mean_rank())),
    "boosted-trees": ("the ranking of trees trained on other devices", lambda s: ranked(s.trees())),
}


def strategy(name: str, sources: Sources) -> Strategy:
    """A strategy by its name; UserError where no strategy is called so."""
    if name not in STRATEGIES:
        raise UserError(f"got strategy {name!r}, expected one of {', '.join(STRATEGIES)}")
    return STRATEGIES[name][1](sources)
