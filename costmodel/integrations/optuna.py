"""Optuna with our guarded search as its sampler: predictions rank the configs, measured trials correct them.

    import optuna
    from costmodel import workloads
    from costmodel.integrations.optuna import CostModelSampler, enqueue_best

    kernel = workloads.load("triton/rms_norm")
    problem = kernel.problems["prefill"]

    def objective(trial):
        config = {name: trial.suggest_categorical(name, values) for name, values in kernel.space.params}
        return latency_us(config)  # yours; NaN, an exception or TrialPruned for a config that fails

    study = optuna.create_study(sampler=CostModelSampler(kernel, problem, "H200"))
    study.optimize(objective, n_trials=40)

Another sampler can begin with the configs that the model likes best:

    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=0))
    enqueue_best(study, kernel, problem, "H200", top=8)
    study.optimize(objective, n_trials=40)
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from costmodel.integrations.ranking import Guard, Model, best_first, loaded, measurement, sheet
from costmodel.records import Config, Device, Measurement, Problem, UserError, Variant, Workload
from costmodel.search import Tuner

BATCH = 4  # picks between two looks at the measurements; the search's model-free moves are a share of a batch

if TYPE_CHECKING:  # what Optuna asks of a sampler is all here, so that it need not be imported for it
    from optuna.samplers import BaseSampler
else:
    BaseSampler = object


class CostModelSampler(BaseSampler):
    """Suggests whole configs, valid ones alone and each of them once; suggest_categorical, _int and _float all do.

    What is minimised must be a latency in microseconds. Failed and pruned trials count as failures of their config,
    trials of other samplers and processes in the study as measurements. A study that has tried everything stops.
    Where there is no model that works, one warning says so, and the search learns from the trials alone.
    """

    def __init__(
        self,
        candidates: Workload | Sequence[Variant],
        problem: Problem | None,
        device: Device | str | None,
        model: Model = None,
        *,
        seed: int = 0,
    ) -> None:
        """candidates: a workload, of which `problem` is solved, or variants, which have their own (problem is None)."""
        self._device, self._model, self._seed = sheet(device), model, seed
        self._variants = _variants(candidates, problem, self._device)
        self._default = candidates.default if isinstance(candidates, Workload) else None
        self._of = {frozenset(variant.config.params): variant for variant in self._variants}
        self._picks: dict[int, Config] = {}  # by the trial's number
        self._told: set[int] = set()
        self._tuner: Tuner | None = None
        self._batch: list[Variant] = []
        self._guard = Guard("the search learns from its trials alone")
        self._lock = threading.Lock()  # study.optimize(n_jobs=2) asks from two threads

    def infer_relative_search_space(self, study: Any, trial: Any) -> dict[str, Any]:
        return {}

    def sample_relative(self, study: Any, trial: Any, search_space: Any) -> dict[str, Any]:
        return {}

    def sample_independent(self, study: Any, trial: Any, param_name: str, param_distribution: Any) -> Any:
        """The parameter's value in the config that was picked for this trial, whatever order they are asked for in."""
        with self._lock:
            if trial.number not in self._picks:
                self._picks[trial.number] = self._pick(study, trial)
        values = self._picks[trial.number].as_dict()
        if param_name not in values:
            raise UserError(f"got parameter {param_name!r}, expected one of {', '.join(values)}")
        return values[param_name]

    def before_trial(self, study: Any, trial: Any) -> None:
        if [direction.name for direction in study.directions] != ["MINIMIZE"]:
            raise UserError("got a study with another aim, expected one latency to minimise; direction='minimize'")

    def after_trial(self, study: Any, trial: Any, state: Any, values: Any) -> None:
        tried = {self._key(other.params) for other in (*study.get_trials(deepcopy=False), trial)}
        if self._of.keys() <= tried:
            _stop(study)

    def reseed_rng(self) -> None:
        """Nothing is drawn that two threads could draw alike."""

    def _pick(self, study: Any, trial: Any) -> Config:
        if fixed := dict(self._key(trial.system_attrs.get("fixed_params", {}))):
            names = ", ".join(fixed)
            raise UserError(f"got an enqueued trial of {names} alone, expected every parameter of the config")
        if self._tuner is None:
            told = self._guard(lambda: loaded(self._model).predict(self._variants, self._device))
            default = next((v for v in self._variants if v.config == self._default), None)
            self._tuner = Tuner(self._variants, [told] if told else [], default=default, seed=self._seed)
        others = [other for other in study.get_trials(deepcopy=False) if other.number != trial.number]
        finished = [other for other in others if other.state.is_finished() and other.number not in self._told]
        self._told |= {other.number for other in finished}
        self._tuner.tell([self._measurement(other) for other in finished if self._key(other.params) in self._of])
        taken = {self._key(other.params) for other in others}  # by other samplers' trials too
        while self._batch or (batch := self._tuner.ask(BATCH)):
            self._batch = self._batch or batch
            config = self._batch.pop(0).config
            if frozenset(config.params) not in taken:
                return config
        if _stop(study):  # another thread of study.optimize took the last one
            from optuna import TrialPruned

            raise TrialPruned
        raise UserError(f"got another trial after all {len(self._variants)} configs were tried, expected no more")

    def _measurement(self, trial: Any) -> Measurement:
        us = trial.value if trial.state.name == "COMPLETE" else math.nan
        if -math.inf < us <= 0:
            raise UserError(f"got {us} from trial {trial.number}, expected a latency above 0")
        variant = self._of[self._key(trial.params)]
        return measurement(variant, self._device, us, failure=f"trial {trial.state.name}")

    def _key(self, params: dict[str, Any]) -> frozenset[tuple[str, Any]]:
        names = self._variants[0].config.as_dict()
        return frozenset((name, value) for name, value in params.items() if name in names)


def enqueue_best(
    study: Any,
    candidates: Workload | Sequence[Variant],
    problem: Problem | None,
    device: Device | str | None,
    *,
    top: int = 8,
    model: Model = None,
) -> list[Config]:
    """Enqueue the `top` configs that are predicted to be the fastest, and return them. Arguments as of the sampler's.
    Where there is no model that works, none are enqueued and a warning says why."""
    target = sheet(device)
    variants = _variants(candidates, problem, target)
    order = Guard("nothing is enqueued")(lambda: best_first(variants, target, model))
    best = [variants[i].config for i in (order or [])[:top]]
    for config in best:
        study.enqueue_trial(config.as_dict(), skip_if_exists=True)
    return best


def _stop(study: Any) -> bool:
    """Whether there was a study.optimize to stop."""
    try:
        study.stop()
    except RuntimeError:
        return False
    return True


def _variants(candidates: Workload | Sequence[Variant], problem: Problem | None, device: Device) -> list[Variant]:
    if not isinstance(candidates, Workload):
        found = list(candidates)
    elif problem is None:
        raise UserError(f"got no problem, expected one of {candidates.kernel.name}'s")
    else:
        found = candidates.variants(problem, device)
    names = {tuple(variant.config.as_dict()) for variant in found}
    if len(names) != 1:
        raise UserError(f"got {len(found)} candidates with {len(names)} sets of parameters, expected one set")
    return found
