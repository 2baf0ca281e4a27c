"""One training loop, for both stages: next tokens of source text, then latencies.

A latency step takes a few search spaces of one kernel under two-part attention: the source is encoded once, on it each
space's device and problem, on those some of its suffixes; small kernels are taken several at a time. What a step draws
depends on (seed, member, step) alone, so a run that was killed goes on from its checkpoint as if it had not been.

    members = fresh_members(small_config(tokenizer.vocab_size), lambda width: GridHead(width, LogGrid()), seeds=(0, 1))
    train(texts, TrainConfig(objective="next-token", steps=300), members=members)
    summary = train(groups, TrainConfig(steps=2000), members=members, checkpoints=Path("run"))
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
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
from costmodel.model.heads import Head
from costmodel.model.losses import Targets
from costmodel.records import UserError, digest

Objective = Literal["latency", "next-token"]
SPELLED_SHARE = 0.15  # of the steps of a group
PAD = 0  # the id of <pad>, see tokens.SPECIALS
LOSS_WINDOW = 50  # steps over which the losses of the summary are averaged


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """What was measured of one search space: a prefix, and n suffixes with what they came to.

    The prefix is `source`, then one of `contexts`: the device and the problem, in as many wordings as training may draw
    from (the device's numbers jittered or left out), each step one. Groups of equal source are trained together.
    `spelled`, where given, are the suffixes with some settings written out, as those of an unseen kernel arrive; a step
    in SPELLED_SHARE takes them. z (n,) is log2(latency / reference), ignored where failed (n,) is True. `rank_only`
    marks rows that a search gathered: a biased sample of its space, which teaches the order and not the level.
    """

    source: Sequence[int]
    contexts: Sequence[Sequence[int]]
    suffixes: Sequence[Sequence[int]]
    z: np.ndarray
    failed: np.ndarray
    rank_only: bool = False
    spelled: Sequence[Sequence[int]] | None = None

    def __post_init__(self) -> None:
        if not self.contexts or not all(self.contexts):
            raise UserError(f"got a group with contexts {list(self.contexts)}, expected at least one, and none empty")
        if not len(self.suffixes) == len(self.z) == len(self.failed) > 0:
            raise UserError(
                f"got a group with {len(self.suffixes)} suffixes, {len(self.z)} values and {len(self.failed)} flags, "
                "expected some, and as many of each"
            )
        if not np.isfinite(np.asarray(self.z)[~np.asarray(self.failed)]).all():
            raise UserError("got a group with a value that is not finite, expected that of failures only")


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
) -> TrainSummary:
    """Trains every member in place and where it is, on the CPU or a GPU: on groups (objective "latency"), or on texts
    as token ids ("next-token").

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
            with _on(next(member.backbone.parameters()).device):
                begun, seen, terms = _train_member(member, index, draw, config, path, identity, report)
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
        torch.optim.Muon(matrices, lr=config.muon_lr, momentum=0.95, weight_decay=config.muon_decay),
        torch.optim.AdamW(others, lr=config.adamw_lr, betas=(0.9, 0.98), weight_decay=0.05),
    ]
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
    return optimizers


class LatencyBatches:
    """Draws kernels, each with a probability that grows as the root of its size, some of their groups and suffixes."""

    def __init__(self, groups: Sequence[Group], config: TrainConfig) -> None:
        self.config = config
        kernels: dict[tuple[int, ...], list[Group]] = {}
        for group in groups:
            kernels.setdefault(tuple(group.source), []).append(group)
        self.kernels = list(kernels.values())
        weights = np.sqrt([sum(len(group.suffixes) for group in members) for members in self.kernels])
        self.weights = weights / weights.sum()

    def identity(self) -> str:
        groups = [group for members in self.kernels for group in members]
        return digest(
            [(list(g.source), list(g.contexts[0]), len(g.suffixes), float(np.nansum(g.z))) for g in groups],
            [int(np.sum(g.failed)) for g in groups],
        )

    def loss(self, member: Member, rng: np.random.Generator) -> tuple[Tensor, dict[str, float], int]:
        losses: list[Tensor] = []
        terms: dict[str, list[float]] = defaultdict(list)
        count = 0
        for _ in range(self.config.kernels):
            if 2 * count >= self.config.rows:
                break
            groups = self.kernels[rng.choice(len(self.kernels), p=self.weights)]
            chosen = [groups[i] for i in rng.permutation(len(groups))[: self.config.groups]]
            each = -(-(self.config.rows - count) // len(chosen))
            source = chosen[0].source
            shared = decoder.encode_prefix(member.backbone, self._thinned(source, rng)) if len(source) else None
            for group in chosen:
                rows = rng.permutation(len(group.suffixes))[:each]
                loss, parts = self._group_loss(member, group, rows, shared, rng)
                losses.append(loss * len(rows))
                count += len(rows)
                for name, part in parts.items():
                    terms[name].append(part.item())
        return torch.stack(losses).sum() / count, {name: float(np.mean(part)) for name, part in terms.items()}, count

    def _thinned(self, ids: Sequence[int], rng: np.random.Generator) -> Tensor:
        """Some tokens read as <pad>: with few spaces to learn from, a network knows them by any one of their tokens."""
        return torch.as_tensor(ids).masked_fill(torch.as_tensor(rng.random(len(ids)) < self.config.token_dropout), PAD)

    def _group_loss(
        self,
        member: Member,
        group: Group,
        rows: np.ndarray,
        source: decoder.PrefixCache | None,
        rng: np.random.Generator,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        context = group.contexts[int(rng.integers(len(group.contexts)))]
        prefix = decoder.encode_prefix(member.backbone, self._thinned(context, rng), after=source)
        spelled = group.spelled is not None and rng.random() < SPELLED_SHARE
        suffixes = group.spelled if spelled and group.spelled else group.suffixes
        ids, lengths = decoder.pad([suffixes[row] for row in rows])
        targets = Targets(
            torch.as_tensor(np.asarray(group.z)[rows], dtype=torch.float32),
            torch.as_tensor(np.asarray(group.failed)[rows], dtype=torch.bool),
            torch.full((len(rows),), group.rank_only),
        )
        return member.head.loss(member.backbone, prefix, ids, lengths, targets)


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
