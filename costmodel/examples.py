"""From measurements to what training reads, and from there to a model.

    model, stages = fit(measurements, Recipe())

A space becomes one group: the text of its kernel, device and problem once, its configs with their slowdowns.
`shards_of` writes them down as token ids, which can be trained on where nothing that reads source text is installed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from costmodel import dataset
from costmodel.familiarity import Familiarity
from costmodel.predictor import PREFIX_BUDGET, NeuralCostModel
from costmodel.recipe import Recipe, train_members
from costmodel.records import Device, Kernel, Measurement, UserError
from costmodel.serialize import canonical_source, device_text, prompt, reference_us, vendor_only
from costmodel.shards import Shards
from costmodel.tokens import TextTokenizer
from costmodel.train import Group, TrainSummary

SPELLED_SETTINGS = 0.5  # share of a group's settings that are written out in the wording that spells
# Training must not learn the few devices by heart: how often a space's device is told by its vendor alone, not at all,
# or with its numbers off by a log-normal JITTER and some of them left out.
VENDOR_WORDINGS, UNKNOWN_WORDINGS, JITTERED_WORDINGS = 5, 1, 9
JITTER, DROPPED_SHARE, ARCH_DROPPED_SHARE = 0.08, 0.15, 0.75


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
    shards = shards_of(measurements, recipe, tokenizer=start.tokenizer if start else None)
    members, summaries = train_members(
        shards, recipe, start=start.members if start else None, checkpoints=checkpoints, jobs=jobs
    )
    return NeuralCostModel(members, shards.tokenizer, shards.details), summaries


def shards_of(measurements: Sequence[Measurement], recipe: Recipe, *, tokenizer: TextTokenizer | None = None) -> Shards:
    """What a recipe trains on, as token ids; the tokenizer is made from the measurements where none is given."""
    if not any(m.status == "ok" for m in measurements):
        raise UserError(f"got {len(measurements)} measurements and none that is ok, expected some; collect first")
    if tokenizer is None:
        prompts = (prompt(m.variant, m.device) for m in measurements)
        tokenizer = TextTokenizer.train(prompts, vocab_size=recipe.vocab_size)
    groups = training_groups(measurements, tokenizer, seed=recipe.seed)
    texts = source_texts((m.variant.kernel for m in measurements), tokenizer)
    return Shards(tokenizer, groups, texts, {"familiarity": Familiarity.of(measurements).as_json()})


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
