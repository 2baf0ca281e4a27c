"""One training loop, for both stages: next tokens of source text, then latencies.

A latency step takes a few search spaces of one kernel under two-part attention: the source is encoded once, on it each
space's device and problem, on those some of its suffixes. What a step draws depends on (seed, member, step) alone, so a
run that was killed goes on from its checkpoint as if it had not been.

    members = fresh_members(small_config(tokenizer.vocab_size), lambda width: GridHead(width, LogGrid()), seeds=(0, 1))
    train(texts, TrainConfig(objective="next-token", steps=300), members=members)
    summary = train(groups, TrainConfig(steps=2000), members=members, checkpoints=Path("run"))
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from transformers import PreTrainedConfig

from costmodel.model import checkpoint, decoder
from costmodel.model.checkpoint import Member
from costmodel.model.heads import Head, Targets
from costmodel.records import UserError, digest

Objective = Literal["latency", "next-token"]
LOSS_WINDOW = 50  # steps over which the losses of the summary are averaged


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """What was measured of one search space: a prefix, and n suffixes with what they came to.

    z (n,) is log2(latency / reference), ignored where failed (n,) is True. `rank_only` marks rows that a search
    gathered: a biased sample of its space, which teaches the order and not the level. Groups whose first `shared`
    prefix tokens are equal (the source) are trained together.
    """

    prefix: Sequence[int]
    suffixes: Sequence[Sequence[int]]
    z: np.ndarray
    failed: np.ndarray
    rank_only: bool = False
    shared: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.shared < max(len(self.prefix), 1):
            raise UserError(f"got {self.shared} shared tokens of {len(self.prefix)}, expected fewer than all")
        if not self.prefix or not len(self.suffixes) == len(self.z) == len(self.failed) > 0:
            raise UserError(
                f"got a group with {len(self.prefix)} prefix tokens, {len(self.suffixes)} suffixes, {len(self.z)} "
                f"values and {len(self.failed)} flags, expected a prefix, and as many suffixes as values and flags"
            )
        if not np.isfinite(np.asarray(self.z)[~np.asarray(self.failed)]).all():
            raise UserError("got a group with a value that is not finite, expected that of failures only")


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """The recipe that won on real spaces. `suffixes` and `groups` are of latency steps, `window` (tokens) and
    `windows` of next-token steps."""

    objective: Objective = "latency"
    steps: int = 2000
    suffixes: int = 64  # of each group
    groups: int = 3  # of one kernel
    window: int = 256
    windows: int = 8
    muon_lr: float = 1.5e-2
    adamw_lr: float = 4e-3
    warmup_steps: int = 50
    final_lr_share: float = 0.03
    clip_norm: float = 1.0
    seed: int = 0
    checkpoint_steps: int = 200

    def __post_init__(self) -> None:
        if self.objective not in get_args(Objective):
            raise UserError(f"got objective {self.objective!r}, expected one of {', '.join(get_args(Objective))}")
        for name in ("steps", "suffixes", "groups", "window", "windows", "checkpoint_steps"):
            if getattr(self, name) < 1:
                raise UserError(f"got {name}={getattr(self, name)}, expected at least 1")


@dataclass(frozen=True, slots=True)
class TrainSummary:
    """`losses` holds one row per member: each term's mean over the last steps."""

    objective: Objective
    members: int
    steps: int
    samples: int  # suffixes or windows seen in this call, by all members
    seconds: float
    resumed_from: tuple[int, ...]  # the step at which each member began
    losses: tuple[dict[str, float], ...]


def fresh_members(config: PreTrainedConfig, make_head: Callable[[int], Head], *, seeds: Sequence[int]) -> list[Member]:
    """Untrained members, one per seed. make_head: hidden size -> head."""
    members = []
    for seed in seeds:
        backbone = decoder.build(config, seed=seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            members.append(Member(backbone, make_head(backbone.config.hidden_size)))
    return members


def train(
    examples: Sequence[Group] | Sequence[Sequence[int]],
    config: TrainConfig,
    *,
    members: Sequence[Member],
    checkpoints: Path | None = None,
    quiet: bool = False,
) -> TrainSummary:
    """Trains every member in place: on groups (objective "latency"), or on texts as token ids ("next-token").

    With `checkpoints`, a folder, each member is saved every `checkpoint_steps`, and a member found there goes on from
    where it was; it must have been written by the same config on the same examples.
    """
    if not examples:
        raise UserError("got no examples to train on, expected at least one")
    latency = config.objective == "latency"
    if latency != isinstance(examples[0], Group):
        raise UserError(f"got {type(examples[0]).__name__} examples for objective {config.objective!r}")
    draw: Batches = LatencyBatches(examples, config) if latency else TextBatches(examples, config)  # type: ignore[arg-type]
    identity = digest(asdict(config), draw.identity())
    started, done, losses, samples = time.perf_counter(), [], [], 0
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[loss]}"),
    )
    with Progress(*columns, console=console, disable=quiet or not console.is_terminal) as progress:
        for index, member in enumerate(members):
            path = checkpoints / f"{config.objective}-{index}.safetensors" if checkpoints else None
            task = progress.add_task(
                f"{config.objective} member {index + 1}/{len(members)}", total=config.steps, loss=""
            )
            report = lambda step, loss, task=task: progress.update(task, completed=step, loss=f"loss {loss:.3f}")  # noqa: E731
            begun, seen, terms = _train_member(member, index, draw, config, path, identity, report)
            done.append(begun)
            samples += seen
            losses.append(terms)
    seconds = time.perf_counter() - started
    return TrainSummary(config.objective, len(members), config.steps, samples, seconds, tuple(done), tuple(losses))


def _train_member(
    member: Member,
    index: int,
    draw: Batches,
    config: TrainConfig,
    path: Path | None,
    identity: str,
    report: Callable[[int, float], None],
) -> tuple[int, int, dict[str, float]]:
    """Returns the step it began at, the samples it saw and its last losses."""
    network = nn.ModuleDict({"backbone": member.backbone, "head": member.head}).train()
    parameters = [p for p in network.parameters() if p.requires_grad]
    optimizers = make_optimizers(network, config)
    first = 0
    history: list[dict[str, float]] = []
    if path and path.exists():
        first, history = _resume(path, network, optimizers, identity)
    samples = 0
    for step in range(first, config.steps):
        rng = np.random.default_rng((config.seed, index, step))
        share = lr_share(step, config)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * share
        loss, terms, count = draw.loss(member, rng)
        loss.backward()
        samples += count
        total = loss.item()
        if not math.isfinite(total):
            raise UserError(f"got a loss of {total} at step {step}, expected a finite one; lower the learning rates")
        nn.utils.clip_grad_norm_(parameters, config.clip_norm)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        history = [*history, {"loss": total, **terms}][-LOSS_WINDOW:]
        report(step + 1, total)
        if path and ((step + 1) % config.checkpoint_steps == 0 or step + 1 == config.steps):
            _save(path, network, optimizers, identity, step + 1, history)
    network.eval()
    names = sorted({name for row in history for name in row})
    return first, samples, {name: float(np.mean([row[name] for row in history if name in row])) for name in names}


def lr_share(step: int, config: TrainConfig) -> float:
    """Linear warm-up, then a cosine down to `final_lr_share`."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return config.final_lr_share + (1 - config.final_lr_share) * (1 + math.cos(math.pi * progress)) / 2


def make_optimizers(network: nn.ModuleDict, config: TrainConfig) -> list[torch.optim.Optimizer]:
    """Muon (Jordan et al., 2024) for the matrices inside the backbone; AdamW for embeddings, norms and the head."""
    backbone = network["backbone"]
    tables = {id(m.weight) for m in backbone.modules() if isinstance(m, nn.Embedding)}
    output = backbone.get_output_embeddings()  # type: ignore[operator]
    tables |= {id(output.weight)} if output is not None else set()
    trained = [p for p in backbone.parameters() if p.requires_grad]
    matrices = [p for p in trained if p.ndim == 2 and id(p) not in tables]
    inside = {id(p) for p in matrices}
    others = [p for p in network.parameters() if p.requires_grad and id(p) not in inside]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.Muon(matrices, lr=config.muon_lr, momentum=0.95, weight_decay=0.0),
        torch.optim.AdamW(others, lr=config.adamw_lr, betas=(0.9, 0.98), weight_decay=0.05),
    ]
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
    return optimizers


class LatencyBatches:
    """Draws a kernel, with a probability that grows as the root of its size, some of its groups and their suffixes."""

    def __init__(self, groups: Sequence[Group], config: TrainConfig) -> None:
        self.suffixes, self.groups = config.suffixes, config.groups
        kernels: dict[tuple[int, ...], list[Group]] = {}
        for i, group in enumerate(groups):
            kernels.setdefault(tuple(group.prefix[: group.shared]) or (-1, i), []).append(group)
        self.kernels = list(kernels.values())
        weights = np.sqrt([sum(len(group.suffixes) for group in members) for members in self.kernels])
        self.weights = weights / weights.sum()

    def identity(self) -> str:
        return digest(
            [
                (list(g.prefix), len(g.suffixes), float(np.nansum(g.z)), int(np.sum(g.failed)))
                for members in self.kernels
                for g in members
            ]
        )

    def loss(self, member: Member, rng: np.random.Generator) -> tuple[Tensor, dict[str, float], int]:
        members = self.kernels[rng.choice(len(self.kernels), p=self.weights)]
        chosen = [members[i] for i in rng.permutation(len(members))[: self.groups]]
        shared = chosen[0].shared
        source = decoder.encode_prefix(member.backbone, torch.as_tensor(chosen[0].prefix[:shared])) if shared else None
        losses, terms, count = [], defaultdict(list), 0
        for group in chosen:
            rows = rng.permutation(len(group.suffixes))[: self.suffixes]
            ids, lengths = decoder.pad([group.suffixes[row] for row in rows])
            targets = Targets(
                torch.as_tensor(np.asarray(group.z)[rows], dtype=torch.float32),
                torch.as_tensor(np.asarray(group.failed)[rows], dtype=torch.bool),
                torch.full((len(rows),), group.rank_only),
            )
            prefix = decoder.encode_prefix(member.backbone, torch.as_tensor(group.prefix[shared:]), after=source)
            loss, parts = member.head.loss(member.backbone, prefix, ids, lengths, targets)
            losses.append(loss)
            count += len(rows)
            for name, part in parts.items():
                terms[name].append(part.item())
        return torch.stack(losses).mean(), {name: float(np.mean(values)) for name, values in terms.items()}, count


class TextBatches:
    """Draws windows of one long stream: all texts, one after another."""

    def __init__(self, texts: Sequence[Sequence[int]], config: TrainConfig) -> None:
        self.stream = np.concatenate([np.asarray(text, dtype=np.int64) for text in texts])
        self.window, self.windows = min(config.window, len(self.stream) - 1), config.windows
        if self.window < 1:
            raise UserError(f"got {len(self.stream)} tokens of text, expected at least 2")

    def identity(self) -> str:
        return digest(self.stream.tolist())

    def loss(self, member: Member, rng: np.random.Generator) -> tuple[Tensor, dict[str, float], int]:
        starts = rng.integers(0, len(self.stream) - self.window, self.windows)
        ids = torch.as_tensor(self.stream[starts[:, None] + np.arange(self.window + 1)])
        logits = member.backbone(input_ids=ids[:, :-1], use_cache=False).logits
        loss = nn.functional.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten())
        return loss, {}, self.windows


Batches = LatencyBatches | TextBatches


def _save(
    path: Path, network: nn.Module, optimizers: Sequence[torch.optim.Optimizer], identity: str, step: int, history: Any
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    weights = {f"network.{i}": p for i, p in enumerate(network.parameters())}
    tensors = weights | checkpoint.optimizer_tensors(optimizers)
    checkpoint.save_training(path, tensors, {"identity": identity, "step": step, "history": history})


def _resume(
    path: Path, network: nn.Module, optimizers: Sequence[torch.optim.Optimizer], identity: str
) -> tuple[int, list[dict[str, float]]]:
    tensors, state = checkpoint.load_training(path)
    if state["identity"] != identity:
        raise UserError(f"got {path} of another config or other examples, expected this run's; remove it to start anew")
    with torch.no_grad():
        for i, parameter in enumerate(network.parameters()):
            parameter.copy_(tensors[f"network.{i}"])
    checkpoint.restore_optimizers(optimizers, tensors)
    return state["step"], state["history"]
