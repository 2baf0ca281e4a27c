"""From measurements to a model: the recipe of the shipped checkpoint, in one function.

Tokenizer, then (optionally) next-token training on the sources, then latencies, for several seeds that are averaged.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from joblib import Parallel, delayed

from costmodel import dataset
from costmodel.familiarity import Familiarity
from costmodel.model.checkpoint import Member
from costmodel.model.decoder import small_config
from costmodel.model.heads import GridHead
from costmodel.predictor import PREFIX_BUDGET, NeuralCostModel
from costmodel.records import Kernel, Measurement, UserError
from costmodel.serialize import canonical_source, prompt, reference_us
from costmodel.tokens import LogGrid, TextTokenizer
from costmodel.train import Group, TrainConfig, TrainSummary, fresh_members, train

SPELLED_SHARE = 0.15  # of the parameters of a training group


@dataclass(frozen=True, slots=True)
class Recipe:
    """Sizes and steps. The defaults made the shipped checkpoint."""

    members: int = 4
    steps: int = 3000
    reading_steps: int = 150  # next-token training on the sources first; 0 leaves it out
    suffixes: int = 64
    hidden_size: int = 64
    layers: int = 2
    vocab_size: int = 3072
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("members", 1), ("steps", 0), ("reading_steps", 0), ("suffixes", 2)):
            if getattr(self, name) < least:
                raise UserError(f"got {name}={getattr(self, name)}, expected at least {least}")


def fit(
    measurements: Sequence[Measurement],
    recipe: Recipe,
    *,
    start: NeuralCostModel | None = None,
    checkpoints: Path | None = None,
    jobs: int = 1,
) -> tuple[NeuralCostModel, list[TrainSummary]]:
    """Train a model on measurements, failures among them; from the weights of `start` where it is given.

    checkpoints: a folder from which a killed run goes on. jobs: members trained at once, each in a process of its own
    with one thread; the result does not depend on it. The summaries are per member and stage.
    """
    if not any(m.status == "ok" for m in measurements):
        raise UserError(f"got {len(measurements)} measurements and none that is ok, expected some; collect first")
    if start is None:
        prompts = (prompt(m.variant, m.device) for m in measurements)
        tokenizer = TextTokenizer.train(prompts, vocab_size=recipe.vocab_size)
    else:
        tokenizer = start.tokenizer
    groups = training_groups(measurements, tokenizer, seed=recipe.seed)
    texts = source_texts((m.variant.kernel for m in measurements), tokenizer)
    if start is None:
        z = np.concatenate([g.z[~g.failed] for g in groups])
        members = fresh_members(
            small_config(tokenizer.vocab_size, hidden_size=recipe.hidden_size, layers=recipe.layers),
            lambda width: GridHead(width, LogGrid(), z_var=float(z.var())),
            seeds=range(recipe.seed, recipe.seed + recipe.members),
        )
    else:
        members = start.members
    work = [
        delayed(_train_member)(member, texts, groups, recipe, number, checkpoints, jobs > 1)
        for number, member in enumerate(members)
    ]
    trained = Parallel(n_jobs=min(jobs, len(members)))(work)
    details = {"familiarity": Familiarity.of(measurements).as_json()}
    model = NeuralCostModel([member for member, _ in trained], tokenizer, details)
    return model, [summary for _, summaries in trained for summary in summaries]


def _train_member(
    member: Member,
    texts: Sequence[Sequence[int]],
    groups: Sequence[Group],
    recipe: Recipe,
    number: int,
    checkpoints: Path | None,
    alone: bool,
) -> tuple[Member, list[TrainSummary]]:
    """Both stages of one member. `alone`, in a process of its own, it takes one thread; only the first shows a bar."""
    if alone:
        torch.set_num_threads(1)
    folder = checkpoints / f"member-{number}" if checkpoints else None
    seed, quiet = recipe.seed + number, alone and number > 0
    summaries = []
    if recipe.reading_steps:
        config = TrainConfig(objective="next-token", steps=recipe.reading_steps, seed=seed)
        summaries.append(train(texts, config, members=[member], checkpoints=folder, quiet=quiet))
    if recipe.steps:
        config = TrainConfig(steps=recipe.steps, suffixes=recipe.suffixes, seed=seed)
        summaries.append(train(groups, config, members=[member], checkpoints=folder, quiet=quiet))
    return member, summaries


def training_groups(measurements: Iterable[Measurement], tokenizer: TextTokenizer, *, seed: int) -> list[Group]:
    """One group a space (kernel, problem, device): the prefix once, and its configs with their log2 slowdowns.

    In each group some parameters are spelled out, as those of a kernel that nobody trained on will be.
    """
    rng = np.random.default_rng(seed)
    groups = []
    for space in dataset.groups(measurements):
        prompts = [prompt(m.variant, m.device) for m in space.measurements]
        prefix = tokenizer.encode_prefix(prompts[0], PREFIX_BUDGET).ids
        spelled = np.flatnonzero(rng.random(len(prompts[0].config)) < SPELLED_SHARE).tolist()
        slowdown = [m.latency_us / reference_us(m.variant, m.device) for m in space.measurements]
        groups.append(
            Group(
                prefix=prefix,
                shared=prefix.index(tokenizer.sep_id),
                suffixes=[tokenizer.encode_suffix(p, spelled=spelled) for p in prompts],
                z=np.log2(slowdown),
                failed=np.array([m.status != "ok" for m in space.measurements]),
            )
        )
    return groups


def source_texts(kernels: Iterable[Kernel], tokenizer: TextTokenizer) -> list[tuple[int, ...]]:
    """Each distinct source as token ids, for next-token training."""
    return [tokenizer.encode(canonical_source(kernel)) for kernel in dict.fromkeys(kernels)]
