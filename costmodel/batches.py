"""What a training step draws: suffixes of a few search spaces, or windows of text.

A step is drawn whole before any of it is computed, and by the generator it is given alone. So processes that share a
run draw the same parts and compute some each (see parallel), and a run that goes on draws what it would have drawn.
Examples may be sequences that read on demand (see shards): kept of them are a few numbers each.
"""

from __future__ import annotations

import hashlib
import itertools
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from costmodel.model import decoder
from costmodel.model.checkpoint import Member
from costmodel.model.losses import Targets
from costmodel.records import UserError

if TYPE_CHECKING:
    from costmodel.train import TrainConfig

SPELLED_SHARE = 0.15  # of the steps of a group
PAD = 0  # the id of <pad>, see tokens.SPECIALS


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


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """What a step takes of one group. Parts of one `turn` have their source in common, which is encoded once."""

    turn: int
    source: Tensor
    context: Tensor
    suffixes: Tensor
    lengths: Tensor
    targets: Targets

    @property
    def rows(self) -> int:
        return len(self.lengths)


class LatencyBatches:
    """Draws kernels, each with a probability that grows as the root of its size, some of their groups and suffixes."""

    def __init__(self, groups: Sequence[Group], config: TrainConfig) -> None:
        self.groups, self.config = groups, config
        self.kernels: list[list[int]] = []  # the groups of each, by number
        known: dict[bytes, int] = {}
        sizes: list[int] = []
        told = hashlib.sha256()
        for number, group in enumerate(groups):
            source = _digest(group.source)
            kernel = known.setdefault(source, len(known))
            if kernel == len(self.kernels):
                self.kernels.append([])
                sizes.append(0)
            self.kernels[kernel].append(number)
            sizes[kernel] += len(group.suffixes)
            told.update(source + _digest(group.contexts[0]))
            told.update(repr((len(group.suffixes), float(np.nansum(group.z)), int(np.sum(group.failed)))).encode())
        weights = np.sqrt(sizes)
        self.weights = weights / weights.sum()
        self.identity = told.hexdigest()[:16]

    def step(self, rng: np.random.Generator) -> list[Part]:
        parts: list[Part] = []
        count = 0
        for turn in range(self.config.kernels):
            if 2 * count >= self.config.rows:
                break
            numbers = self.kernels[rng.choice(len(self.kernels), p=self.weights)]
            chosen = [self.groups[numbers[i]] for i in rng.permutation(len(numbers))[: self.config.groups]]
            each = -(-(self.config.rows - count) // len(chosen))
            source = self._thinned(chosen[0].source, rng)
            for group in chosen:
                rows = rng.permutation(len(group.suffixes))[:each]
                parts.append(self._part(turn, source, group, rows, rng))
                count += len(rows)
        return parts

    def loss(self, member: Member, parts: Sequence[Part]) -> tuple[Tensor, dict[str, list[float]]]:
        """The sum of the rows' losses, and each term of each part's."""
        losses: list[Tensor] = []
        terms: dict[str, list[float]] = defaultdict(list)
        for _, of_turn in itertools.groupby(parts, key=lambda part: part.turn):
            together = list(of_turn)
            source = together[0].source
            shared = decoder.encode_prefix(member.backbone, source) if len(source) else None
            for part in together:
                prefix = decoder.encode_prefix(member.backbone, part.context, after=shared)
                loss, found = member.head.loss(member.backbone, prefix, part.suffixes, part.lengths, part.targets)
                losses.append(loss * part.rows)
                for name, term in found.items():
                    terms[name].append(term.item())
        return torch.stack(losses).sum(), dict(terms)

    def _thinned(self, ids: Sequence[int], rng: np.random.Generator) -> Tensor:
        """Some tokens read as <pad>: with few spaces to learn from, a network knows them by any one of their tokens."""
        dropped = torch.as_tensor(rng.random(len(ids)) < self.config.token_dropout)
        return torch.as_tensor(ids, dtype=torch.long).masked_fill(dropped, PAD)

    def _part(self, turn: int, source: Tensor, group: Group, rows: np.ndarray, rng: np.random.Generator) -> Part:
        context = self._thinned(group.contexts[int(rng.integers(len(group.contexts)))], rng)
        spelled = group.spelled is not None and rng.random() < SPELLED_SHARE
        suffixes = group.spelled if spelled and group.spelled else group.suffixes
        ids, lengths = decoder.pad([suffixes[row] for row in rows])
        targets = Targets(
            torch.as_tensor(np.asarray(group.z)[rows], dtype=torch.float32),
            torch.as_tensor(np.asarray(group.failed)[rows], dtype=torch.bool),
            torch.full((len(rows),), group.rank_only),
        )
        return Part(turn, source, context, ids, lengths, targets)


@dataclass(frozen=True, slots=True, eq=False)
class Window:
    """Some tokens of the texts and the one after them, (window + 1,)."""

    ids: Tensor
    rows: int = 1


class TextBatches:
    """Draws windows of one long stream: all texts, one after another."""

    def __init__(self, texts: Sequence[Sequence[int]], config: TrainConfig) -> None:
        self.texts = texts
        lengths: list[int] = []
        told = hashlib.sha256()
        for text in texts:
            lengths.append(len(text))
            told.update(_digest(text))
        self.ends = np.cumsum(lengths)  # of each text, in the stream
        self.identity = told.hexdigest()[:16]
        self.window, self.windows = min(config.window, int(self.ends[-1]) - 1), config.windows
        if self.window < 1:
            raise UserError(f"got {self.ends[-1]} tokens of text, expected at least 2")

    def step(self, rng: np.random.Generator) -> list[Window]:
        starts = rng.integers(0, int(self.ends[-1]) - self.window, self.windows)
        return [Window(torch.as_tensor(self._tokens(int(start), self.window + 1))) for start in starts]

    def loss(self, member: Member, parts: Sequence[Window]) -> tuple[Tensor, dict[str, list[float]]]:
        """The sum of the windows' losses per token; no terms."""
        ids = torch.stack([part.ids for part in parts])
        logits = member.backbone(input_ids=ids[:, :-1], use_cache=False).logits
        loss = nn.functional.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten())
        return loss * len(parts), {}

    def _tokens(self, start: int, count: int) -> np.ndarray:
        """(count,) of the stream, from as many texts as it takes."""
        text = int(np.searchsorted(self.ends, start, side="right"))
        begin = start - int(self.ends[text - 1] if text else 0)
        found: list[int] = []
        while len(found) < count:
            found += self.texts[text][begin : begin + count - len(found)]
            text, begin = text + 1, 0
        return np.array(found, dtype=np.int64)


Batches = LatencyBatches | TextBatches


def _digest(ids: Sequence[int]) -> bytes:
    return hashlib.sha256(np.asarray(ids, dtype=np.int64).tobytes()).digest()
