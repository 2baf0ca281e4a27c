"""The recipe of the shipped checkpoint: (optionally) next-token training on the sources, then latencies, for several
seeds that are averaged. Reads token shards, so it needs torch and transformers alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from joblib import Parallel, delayed

from costmodel.model.checkpoint import Member
from costmodel.model.decoder import small_config
from costmodel.model.heads import make
from costmodel.parallel import ALONE, Processes
from costmodel.records import UserError
from costmodel.shards import Shards
from costmodel.train import TrainConfig, TrainSummary, fresh_members, train


@dataclass(frozen=True, slots=True)
class Recipe:
    """Sizes and steps. The defaults made the shipped checkpoint."""

    members: int = 4
    steps: int = 6000
    reading_steps: int = 150  # next-token training on the sources first; 0 leaves it out
    rows: int = 256
    hidden_size: int = 64
    layers: int = 2
    vocab_size: int = 4096
    head: str = "grid"  # one of model.heads.NAMES
    loss: str | None = None  # terms joined by +; None: the head's own
    prefix_lm: bool = False  # the prompt is read both ways
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("members", 1), ("steps", 0), ("reading_steps", 0), ("rows", 2)):
            if getattr(self, name) < least:
                raise UserError(f"got {name}={getattr(self, name)}, expected at least {least}")


def train_members(
    shards: Shards,
    recipe: Recipe,
    *,
    start: Sequence[Member] | None = None,
    checkpoints: Path | None = None,
    jobs: int = 1,
    processes: Processes = ALONE,
) -> tuple[list[Member], list[TrainSummary]]:
    """Members of different seeds, or `start` trained further; for the other arguments see `examples.fit`.

    Several `processes` share every step of one member after the other, and all return the same; `jobs` is then 1.
    """
    jobs = jobs if processes.count == 1 else 1
    if start is None:
        vocabulary = shards.tokenizer.vocab_size
        z = np.concatenate([g.z[~g.failed] for g in shards.groups])
        start = fresh_members(
            small_config(vocabulary, hidden_size=recipe.hidden_size, layers=recipe.layers, prefix_lm=recipe.prefix_lm),
            lambda width: make(recipe.head, width, z=z, vocab_size=vocabulary, loss=recipe.loss),
            seeds=range(recipe.seed, recipe.seed + recipe.members),
        )
    work = [
        delayed(_train_member)(member, shards, recipe, number, checkpoints, jobs > 1, processes)
        for number, member in enumerate(start)
    ]
    trained = Parallel(n_jobs=min(jobs, len(start)))(work)
    return [member for member, _ in trained], [summary for _, summaries in trained for summary in summaries]


def _train_member(
    member: Member,
    shards: Shards,
    recipe: Recipe,
    number: int,
    checkpoints: Path | None,
    alone: bool,
    processes: Processes,
) -> tuple[Member, list[TrainSummary]]:
    """Both stages of one member, on a GPU where there is one.

    `alone`, in a process of its own, it takes one thread; only the first shows a bar.
    """
    if alone:
        torch.set_num_threads(1)
    place = processes.place()
    member.backbone.to(place)  # type: ignore[arg-type]
    member.head.to(place)
    folder = checkpoints / f"member-{number}" if checkpoints else None
    seed, quiet = recipe.seed + number, alone and number > 0
    run = partial(train, members=[member], checkpoints=folder, quiet=quiet, processes=processes)
    summaries = []
    if recipe.reading_steps:
        config = TrainConfig(objective="next-token", steps=recipe.reading_steps, seed=seed)
        summaries.append(run(shards.texts, config))
    if recipe.steps:
        config = TrainConfig(steps=recipe.steps, rows=recipe.rows, seed=seed)
        summaries.append(run(shards.groups, config))
    member.backbone.cpu()
    member.head.cpu()
    return member, summaries
