"""Our search as a sampler of Optuna: whole valid configs, each once, led by a model and corrected by trials."""

import inspect
import itertools
import math
import statistics
import warnings

import pytest
from examples import example

from costmodel import devices
from costmodel.baselines import NearestTable
from costmodel.integrations import optuna as integration
from costmodel.integrations.optuna import CostModelSampler, enqueue_best
from costmodel.records import Config, Kernel, Measurement, Problem, Timing, UserError, Variant

optuna = pytest.importorskip("optuna")
optuna.logging.set_verbosity(optuna.logging.ERROR)

A100, A6000 = devices.find("A100-PCIE-40GB"), devices.find("RTX A6000")
PARAMS = {"block": (16, 32, 64, 128, 256), "tile": (1, 2, 4, 8), "unroll": (1, 2, 4), "staging": ("none", "shared")}
KERNEL = Kernel("stencil", "cuda", None, tuple(PARAMS.items()), "tests")
PROBLEM = Problem("stencil", (), (("n", 4096),), flops=0, bytes=0)
VARIANTS = [
    Variant(KERNEL, PROBLEM, Config(tuple(zip(PARAMS, values, strict=True))))
    for values in itertools.product(*PARAMS.values())
    if values[0] * values[1] <= 1024  # larger blocks are no valid configs
]


def latency_us(config, best=64):
    """NaN for the configs that fail; the fastest is best, 4, 2, shared."""
    if config["block"] == 256 and config["unroll"] == 4:
        return math.nan
    away = abs(config["block"].bit_length() - best.bit_length()) + abs(config["tile"].bit_length() - 3)
    return 100.0 * 1.3**away * (1.0 if config["unroll"] == 2 else 1.1) * (1.0 if config["staging"] == "shared" else 1.5)


def table(best):
    """What another device measured, whose best block may be another one."""
    known = NearestTable()
    for variant in VARIANTS:
        us = latency_us(variant.config.as_dict(), best)
        status, samples = ("launch_error", ()) if math.isnan(us) else ("ok", (us,))
        known.update([Measurement(variant, A6000, Timing(), (), status, samples)])
    return known


class Broken:
    def predict(self, variants, device):
        raise ArithmeticError("the weights are not finite")


def suggested(trial):
    return {name: trial.suggest_categorical(name, values) for name, values in PARAMS.items()}


def study_of(sampler):
    return optuna.create_study(sampler=sampler)


def trials_to_5_percent(sampler, budget=90):
    study = study_of(sampler)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Optuna tells of each NaN
        study.optimize(lambda trial: latency_us(suggested(trial)), n_trials=budget)
    close = [t.number + 1 for t in study.trials if t.state.name == "COMPLETE" and t.value <= 105.0]
    return min(close, default=2 * budget)


def test_it_is_all_that_optuna_asks_of_a_sampler():
    wanted = {name for name, _ in inspect.getmembers(optuna.samplers.BaseSampler, callable) if name[0] != "_"}
    assert wanted <= set(dir(CostModelSampler))


def test_fewer_trials_than_random_whether_the_prior_is_right_or_off_or_missing():
    seeds = range(5)
    by_chance = statistics.median(trials_to_5_percent(optuna.samplers.RandomSampler(seed=s)) for s in seeds)
    right = trials_to_5_percent(CostModelSampler(VARIANTS, None, A100, table(best=64)))
    off = trials_to_5_percent(CostModelSampler(VARIANTS, None, A100, table(best=16)))
    missing = statistics.median(
        trials_to_5_percent(CostModelSampler(VARIANTS, None, A100, Broken(), seed=s)) for s in seeds
    )
    assert right == 1
    assert off < by_chance / 3
    assert missing < by_chance / 2


def test_only_valid_configs_each_once_and_then_the_study_stops():
    study = study_of(CostModelSampler(VARIANTS, None, A100, table(best=64)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        study.optimize(lambda trial: latency_us(suggested(trial)), n_trials=500)
    tried = [Config(tuple(trial.params.items())) for trial in study.trials]
    assert sorted(map(str, tried)) == sorted(str(variant.config) for variant in VARIANTS)
    with pytest.raises(UserError, match="configs were tried, expected no more"):
        suggested(study.ask())


def test_two_threads_try_everything_once():
    study = study_of(CostModelSampler(VARIANTS[:40], None, A100, table(best=64)))
    study.optimize(lambda trial: sum(map(len, map(str, suggested(trial).values()))), n_trials=60, n_jobs=2)
    complete = [str(sorted(t.params.items())) for t in study.trials if t.state.name == "COMPLETE"]
    assert len(complete) == len(set(complete)) == 40


def test_ask_and_tell_with_failures_of_every_kind():
    """A failure drives the search away, as a NaN, as a pruned trial, and told by its state."""
    study = study_of(CostModelSampler(VARIANTS, None, A100, table(best=64)))
    ways = itertools.cycle(
        [
            lambda trial: study.tell(trial, state=optuna.trial.TrialState.FAIL),
            lambda trial: study.tell(trial, state=optuna.trial.TrialState.PRUNED),
            lambda trial: study.tell(trial, math.inf),
        ]
    )
    values = []
    for _ in range(30):
        trial = study.ask()
        config = suggested(trial)
        values.append(config["staging"])
        if config["staging"] == "shared":  # all the prior's favourites
            next(ways)(trial)
        else:
            study.tell(trial, latency_us(config | {"staging": "shared"}))
    assert values[:8] == ["shared"] * 8
    assert values[8:].count("none") >= 8


def test_any_kind_of_suggestion_in_any_order():
    study = study_of(CostModelSampler(VARIANTS, None, A100, table(best=64)))
    trial = study.ask()
    assert trial.suggest_categorical("staging", ["shared", "none"]) == "shared"
    assert trial.suggest_int("tile", 1, 8) == 4
    assert trial.suggest_float("unroll", 0.5, 4.5) == 2
    assert trial.suggest_int("block", 16, 256, log=True) == 64
    with pytest.raises(UserError, match="got parameter 'warps', expected one of block, tile"):
        trial.suggest_int("warps", 1, 8)


def test_trials_of_others_are_measurements_and_are_not_repeated():
    best = {"block": 64, "tile": 4, "unroll": 2, "staging": "shared"}
    spaces = {name: optuna.distributions.CategoricalDistribution(values) for name, values in PARAMS.items()}
    study = study_of(CostModelSampler(VARIANTS, None, A100, table(best=64)))
    study.add_trial(optuna.trial.create_trial(params=best, distributions=spaces, value=100.0))
    study.enqueue_trial({**best, "tile": 8})
    assert suggested(study.ask()) == {**best, "tile": 8}
    assert suggested(study.ask()) not in (best, {**best, "tile": 8})
    study.enqueue_trial({"block": 64})
    with pytest.raises(UserError, match="an enqueued trial of block alone, expected every parameter"):
        suggested(study.ask())


def test_one_warning_where_the_model_is_missing():
    study = study_of(CostModelSampler(VARIANTS, None, A100, "no-such-folder"))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(12):
            trial = study.ask()
            study.tell(trial, 1.0 + len(str(suggested(trial))))
    (told,) = [str(w.message) for w in caught if "costmodel" in str(w.message)]
    assert "no-such-folder" in told


def test_another_aim_is_refused():
    with pytest.raises(UserError, match="expected one latency to minimise"):
        optuna.create_study(direction="maximize", sampler=CostModelSampler(VARIANTS, None, A100)).ask()


def test_a_warm_start_for_another_sampler():
    study = study_of(optuna.samplers.TPESampler(seed=0))
    best = enqueue_best(study, VARIANTS, None, A100, top=3, model=table(best=64))
    assert best[0] == Config.of(block=64, tile=4, unroll=2, staging="shared")
    assert [suggested(study.ask()) for _ in range(3)] == [config.as_dict() for config in best]
    with pytest.warns(UserWarning, match="nothing is enqueued: the weights"):
        assert enqueue_best(study, VARIANTS, None, A100, model=Broken()) == []


def test_the_example():
    scope = {"latency_us": lambda config: 1.0 + config["BLOCK_M"] / config["num_warps"]}
    exec(example(integration), scope)
    assert len(scope["study"].trials) == 40
    assert scope["study"].best_value < 1.5
    assert [t.params for t in scope["study"].trials[:8]] == [
        t.system_attrs["fixed_params"] for t in scope["study"].trials[:8]
    ]
