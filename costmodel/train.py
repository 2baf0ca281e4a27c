"""One training loop, for both stages: next tokens of source text, then latencies.

A latency step takes a few search spaces of one kernel under two-part attention: the source is encoded once, on it each
space's device and problem, on those some of its suffixes; small kernels are taken several at a time. What a step draws
(see batches) depends on (seed, member, step) alone, so a run that was killed goes on from its checkpoint as if it had
not been, and several processes may share one (see parallel).

    members = fresh_members(small_config(tokenizer.vocab_size), lambda width: GridHead(width, LogGrid()), seeds=(0, 1))
    train(texts, TrainConfig(objective="next-token", steps=300), members=members)
    summary = train(groups, TrainConfig(steps=2000), members=members, checkpoints=Path("run"))
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import nn
from transformers import PreTrainedConfig

from costmodel.batches import Batches, Group, LatencyBatches, TextBatches
from costmodel.model import checkpoint, decoder
from costmodel.model.checkpoint import Member
from costmodel.model.heads import Head
from costmodel.parallel import ALONE, Processes
from costmodel.records import UserError, digest

__all__ = ["Group", "TrainConfig", "TrainSummary", "fresh_members", "lr_share", "make_optimizers", "train"]

Objective = Literal["latency", "next-token"]
LOSS_WINDOW = 50  # steps over which the losses of the summary are averaged


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """The recipe that won on real spaces. `rows`, `groups` and `kernels` are of latency steps, `window` (tokens) and
    `windows` of next-token steps."""

    objective: Objective = "latency"
    steps: int = 2000
    rows: int = 192  # suffixes of a step, spread over its groups
    groups: int = 3  # of one kernel
    kernels: int = 4  # at most, where those taken so far have fewer than half of `rows`
    token_dropout: float = 0.1  # share of the prefix's tokens that a step reads as <pad>
    window: int = 256
    windows: int = 8
    muon_lr: float = 1.5e-2
    muon_decay: float = 0.1
    adamw_lr: float = 4e-3
    warmup_steps: int = 50
    final_lr_share: float = 0.03
    clip_norm: float = 1.0
    seed: int = 0
    checkpoint_steps: int = 200

    def __post_init__(self) -> None:
        if self.objective not in get_args(Objective):
            raise UserError(f"got objective {self.objective!r}, expected one of {', '.join(get_args(Objective))}")
        for name in ("steps", "rows", "groups", "kernels", "window", "windows", "checkpoint_steps"):
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
    processes: Processes = ALONE,
) -> TrainSummary:
    """Trains every member in place and where it is, on the CPU or a GPU: on groups (objective "latency"), or on texts
    as token ids ("next-token").

    With `checkpoints`, a folder, each member is saved every `checkpoint_steps`, and a member found there goes on from
    where it was; it must have been written by the same config on the same examples. Of several `processes` all are
    given the same, and the first reads and writes the checkpoints.
    """
    if not len(examples):
        raise UserError("got no examples to train on, expected at least one")
    latency = config.objective == "latency"
    if latency != isinstance(examples[0], Group):
        raise UserError(f"got {type(examples[0]).__name__} examples for objective {config.objective!r}")
    draw: Batches = LatencyBatches(examples, config) if latency else TextBatches(examples, config)  # type: ignore[arg-type]
    identity = digest(asdict(config), draw.identity)
    if len(set(processes.gathered(identity))) > 1:
        raise UserError("got other examples on one process than on another, expected the same; give all the same data")
    started, done, losses, samples = time.perf_counter(), [], [], 0
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[loss]}"),
    )
    hidden = quiet or processes.rank > 0 or not console.is_terminal
    with Progress(*columns, console=console, disable=hidden) as progress:
        for index, member in enumerate(members):
            path = checkpoints / f"{config.objective}-{index}.safetensors" if checkpoints else None
            task = progress.add_task(
                f"{config.objective} member {index + 1}/{len(members)}", total=config.steps, loss=""
            )
            report = lambda step, loss, task=task: progress.update(task, completed=step, loss=f"loss {loss:.3f}")  # noqa: E731
            with _on(next(member.backbone.parameters()).device):
                begun, seen, terms = _train_member(member, index, draw, config, path, identity, report, processes)
            done.append(begun)
            samples += seen
            losses.append(terms)
    seconds = time.perf_counter() - started
    return TrainSummary(config.objective, len(members), config.steps, samples, seconds, tuple(done), tuple(losses))


def _on(device: torch.device) -> AbstractContextManager[object]:
    """What is drawn for a step is made on this device. On a CPU, where that is so anyway, the context would only cost
    time at every call of torch."""
    return nullcontext() if device.type == "cpu" else device


def _train_member(
    member: Member,
    index: int,
    draw: Batches,
    config: TrainConfig,
    path: Path | None,
    identity: str,
    report: Callable[[int, float], None],
    processes: Processes,
) -> tuple[int, int, dict[str, float]]:
    """Returns the step it began at, the samples it saw and its last losses."""
    network = nn.ModuleDict({"backbone": member.backbone, "head": member.head}).train()
    parameters = [p for p in network.parameters() if p.requires_grad]
    optimizers = make_optimizers(network, config)
    first, history = _resume(path, network, optimizers, identity, processes) if path else (0, [])
    samples = 0
    for step in range(first, config.steps):
        parts = draw.step(np.random.default_rng((config.seed, index, step)))
        share = lr_share(step, config)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * share
        losses = _backward(member, draw, parts, processes)
        samples += sum(part.rows for part in parts)
        if not math.isfinite(losses["loss"]):
            raise UserError(
                f"got a loss of {losses['loss']} at step {step}, expected a finite one; lower the learning rates"
            )
        processes.sum_gradients(parameters)
        nn.utils.clip_grad_norm_(parameters, config.clip_norm)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        history = [*history, losses][-LOSS_WINDOW:]
        report(step + 1, losses["loss"])
        last = step + 1 == config.steps
        if path and processes.rank == 0 and ((step + 1) % config.checkpoint_steps == 0 or last):
            _save(path, network, optimizers, identity, step + 1, history)
    network.eval()
    names = sorted({name for row in history for name in row})
    return first, samples, {name: float(np.mean([row[name] for row in history if name in row])) for name in names}


def _backward(member: Member, draw: Batches, parts: Sequence[Any], processes: Processes) -> dict[str, float]:
    """Gradients of this process's part of the mean loss over all rows; returns that loss, and the terms' means over
    the parts, of all processes."""
    mine, rows = processes.share(parts), sum(part.rows for part in parts)
    told: tuple[float, dict[str, list[float]]] = (0.0, {})
    if mine:
        loss, terms = draw.loss(member, mine)
        loss = loss / rows
        loss.backward()
        told = (loss.item(), terms)
    everyone = processes.gathered(told)
    means = {
        name: float(np.mean([term for _, terms in everyone for term in terms.get(name, ())]))
        for name in sorted({name for _, terms in everyone for name in terms})
    }
    return {"loss": sum(loss for loss, _ in everyone), **means}


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
        torch.optim.Muon(matrices, lr=config.muon_lr, momentum=0.95, weight_decay=config.muon_decay),
        torch.optim.AdamW(others, lr=config.adamw_lr, betas=(0.9, 0.98), weight_decay=0.05),
    ]
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
    return optimizers


def _save(
    path: Path, network: nn.Module, optimizers: Sequence[torch.optim.Optimizer], identity: str, step: int, history: Any
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    weights = {f"network.{i}": p for i, p in enumerate(network.parameters())}
    tensors = weights | checkpoint.optimizer_tensors(optimizers)
    checkpoint.save_training(path, tensors, {"identity": identity, "step": step, "history": history})


def _resume(
    path: Path, network: nn.Module, optimizers: Sequence[torch.optim.Optimizer], identity: str, processes: Processes
) -> tuple[int, list[dict[str, float]]]:
    """The step to go on with and the losses so far; step 0 where nothing was saved."""
    saved = processes.from_first(lambda: checkpoint.load_training(path) if path.exists() else None)
    if saved is None:
        return 0, []
    tensors, state = saved
    if state["identity"] != identity:
        raise UserError(f"got {path} of another config or other examples, expected this run's; remove it to start anew")
    with torch.no_grad():
        for i, parameter in enumerate(network.parameters()):
            parameter.copy_(tensors[f"network.{i}"])
    checkpoint.restore_optimizers(optimizers, tensors)
    return state["step"], state["history"]
