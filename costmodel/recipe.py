"""From measurements to a model: the recipe of the shipped checkpoint, in one function.

Tokenizer, then (optionally) next-token training on the sources, then latencies, for several seeds that are averaged.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from joblib import Parallel, delayed

from costmodel import dataset
from costmodel.codecs import LogGrid
from costmodel.familiarity import Familiarity
from costmodel.model.checkpoint import Member
from costmodel.model.decoder import small_config
from costmodel.model.heads import GridHead
from costmodel.predictor import PREFIX_BUDGET, NeuralCostModel
from costmodel.records import Device, Kernel, Measurement, UserError
from costmodel.serialize import canonical_source, device_text, prompt, reference_us, vendor_only
from costmodel.tokens import TextTokenizer
from costmodel.train import Group, TrainConfig, TrainSummary, fresh_members, train

SPELLED_SETTINGS = 0.5  # share of a group's settings that are written out in the wording that spells
# Training must not learn the few devices by heart: how often a space's device is told by its vendor alone, not at all,
# or with its numbers off by a log-normal JITTER and some of them left out.
VENDOR_WORDINGS, UNKNOWN_WORDINGS, JITTERED_WORDINGS = 5, 1, 9
JITTER, DROPPED_SHARE, ARCH_DROPPED_SHARE = 0.08, 0.15, 0.75


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
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("members", 1), ("steps", 0), ("reading_steps", 0), ("rows", 2)):
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
    """Both stages of one member, on a GPU where there is one.

    `alone`, in a process of its own, it takes one thread; only the first shows a bar.
    """
    if alone:
        torch.set_num_threads(1)
    place = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    member.backbone.to(place)  # type: ignore[arg-type]
    member.head.to(place)
    folder = checkpoints / f"member-{number}" if checkpoints else None
    seed, quiet = recipe.seed + number, alone and number > 0
    summaries = []
    if recipe.reading_steps:
        config = TrainConfig(objective="next-token", steps=recipe.reading_steps, seed=seed)
        summaries.append(train(texts, config, members=[member], checkpoints=folder, quiet=quiet))
    if recipe.steps:
        config = TrainConfig(steps=recipe.steps, rows=recipe.rows, seed=seed)
        summaries.append(train(groups, config, members=[member], checkpoints=folder, quiet=quiet))
    member.backbone.cpu()
    member.head.cpu()
    return member, summaries


def training_groups(measurements: Iterable[Measurement], tokenizer: TextTokenizer, *, seed: int) -> list[Group]:
    """One group a space (see `dataset.space_key`): the source once, and its configs with their log2 slowdowns over the
    floor, or over the median of the space where the problem has none.

    The device comes in several wordings, and the suffixes in a second one with half of the settings spelled out.
    """
    rng = np.random.default_rng(seed)
    groups = []
    for space in dataset.groups(measurements):
        prompts = [prompt(m.variant, m.device) for m in space.measurements]
        spelled = np.flatnonzero(rng.random(len(prompts[0].config)) < SPELLED_SETTINGS).tolist()
        failed = np.array([m.status != "ok" for m in space.measurements])
        if failed.all():
            continue  # nothing says what its failures are relative to
        dtype = space.problem.dtype
        unknown = dataclasses.replace(vendor_only(space.device), vendor="?")
        others = [reworded(space.device, rng) for _ in range(JITTERED_WORDINGS)]
        others += [vendor_only(space.device)] * VENDOR_WORDINGS + [unknown] * UNKNOWN_WORDINGS
        wordings = [prompts[0].device, *(device_text(device, dtype) for device in others)]
        groups.append(
            Group(
                source=tokenizer.encode_prefix(prompts[0], PREFIX_BUDGET).source,
                contexts=[tokenizer.encode_context(device, prompts[0].problem) for device in wordings],
                suffixes=[tokenizer.encode_suffix(p) for p in prompts],
                spelled=[tokenizer.encode_suffix(p, spelled=spelled) for p in prompts],
                z=log2_slowdowns(space.measurements),
                failed=failed,
            )
        )
    return groups


def log2_slowdowns(measurements: Sequence[Measurement]) -> np.ndarray:
    """(n,) of one space: log2 of latency over its reference, or over the median latency; NaN for failures."""
    log2_us = np.log2([m.latency_us for m in measurements])
    references = [reference_us(m.variant, m.device) for m in measurements]
    known = [us for us in references if us is not None]
    return log2_us - (np.log2(known) if len(known) == len(references) else np.nanmedian(log2_us))


def reworded(device: Device, rng: np.random.Generator) -> Device:
    """The sheet with its numbers off by a few per cent and some left out (0, which is told as unknown)."""

    def number(value: float) -> float:
        drop = rng.random() < DROPPED_SHARE
        return 0.0 if drop else value * float(np.exp(rng.normal(0.0, JITTER)))

    return dataclasses.replace(
        device,
        arch="?" if rng.random() < ARCH_DROPPED_SHARE else device.arch,
        num_units=round(number(device.num_units)),
        clock_mhz=number(device.clock_mhz),
        peak_tflops=tuple((name, number(rate)) for name, rate in device.peak_tflops),
        peak_gb_per_s=number(device.peak_gb_per_s),
        l2_bytes=round(number(device.l2_bytes)),
        details=tuple(
            (name, value if isinstance(value, str | bool) else type(value)(number(value)))
            for name, value in device.details
        ),
    )


def source_texts(kernels: Iterable[Kernel], tokenizer: TextTokenizer) -> list[tuple[int, ...]]:
    """Each distinct source as token ids, for next-token training."""
    return [tokenizer.encode(canonical_source(kernel)) for kernel in dict.fromkeys(kernels)]
