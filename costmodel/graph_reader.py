"""The network that reads a program line by line and says of each line by how much it exceeds its floor.

A line's tokens go through two convolutions and are pooled (sum and maximum: a size is the sum of its magnitudes); what
the program's first line says of who runs it is added, and a few residual blocks follow. Lines do not see each other:
attention between them fitted known families better and unknown ones worse (docs/lab-notes.md). So work and memory grow
with the length of a program, and a line that occurs often is read once. At every line a numeric token on a grid is read
(`GridHead`); its expectation m is the line's multiplier, and

    latency = sum over lines of floor * 2^m.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from costmodel.codecs.grids import LogGrid
from costmodel.model.grid_head import GridHead

LOWEST, HIGHEST, BINS = -8.0, 8.0, 64  # of the multipliers, in log2
PAD = 0  # the id of <pad>, see tokens.SPECIALS
REACH = 2  # tokens to either side that a convolution sees
GAP = REACH  # <pad> between lines, so that none sees another
POSITIONS = 256


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Programs for the network. `tokens` (t,) are the distinct lines one after another, GAP between them; `positions`
    (t,) count within a line, `of_line` (t,) says whose a token is, of `distinct`. Programs have l lines in all: `line`
    (l,) says which of the distinct ones each is, `program` (l,) whose, `log2_floors` (l,) its floor; `head` (g,) which
    one begins program g."""

    tokens: Tensor
    positions: Tensor
    of_line: Tensor
    distinct: int
    line: Tensor
    program: Tensor
    log2_floors: Tensor
    head: Tensor


def batch_of(programs: Sequence[tuple[Sequence[int], int, Sequence[float]]], texts: Sequence[Sequence[int]]) -> Batch:
    """programs: (numbers of its lines in `texts`, number of its first line there, log2 of its lines' floors)."""
    used = sorted({n for lines, head, _ in programs for n in (*lines, head)})
    place = {n: at for at, n in enumerate(used)}
    tokens: list[int] = []
    positions: list[int] = []
    of_line: list[int] = []
    for at, n in enumerate(used):
        length = len(texts[n])
        tokens += [*texts[n], *[PAD] * GAP]
        positions += [*range(length), *[length] * GAP]
        of_line += [at] * (length + GAP)
    return Batch(
        torch.tensor(tokens),
        torch.tensor(positions).clamp_max(POSITIONS - 1),
        torch.tensor(of_line),
        len(used),
        torch.tensor([place[n] for lines, _, _ in programs for n in lines]),
        torch.tensor([g for g, (lines, _, _) in enumerate(programs) for _ in lines]),
        torch.tensor([floor for _, _, floors in programs for floor in floors], dtype=torch.float32),
        torch.tensor([place[head] for _, head, _ in programs]),
    )


class Block(nn.Module):
    """x (l, d) -> (l, d): a residual step."""

    def __init__(self, hidden: int, dropout: float) -> None:
        super().__init__()
        self.norm, self.drop = nn.LayerNorm(hidden), nn.Dropout(dropout)
        self.wide, self.back = nn.Linear(hidden, 4 * hidden, bias=False), nn.Linear(4 * hidden, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop(self.back(self.drop(F.gelu(self.wide(self.norm(x))))))


class LineReader(nn.Module):
    """The network: see the module."""

    def __init__(self, vocab_size: int, *, hidden: int, layers: int, dropout: float) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocab_size, hidden)
        self.place = nn.Embedding(POSITIONS, hidden)
        self.convolutions = nn.ModuleList(nn.Conv1d(hidden, hidden, 2 * REACH + 1, padding=REACH) for _ in range(2))
        self.pooled, self.begun = nn.Linear(2 * hidden, hidden), nn.Linear(hidden, hidden)
        self.drop = nn.Dropout(dropout)
        self.blocks = nn.Sequential(*(Block(hidden, dropout) for _ in range(layers)))
        self.norm = nn.LayerNorm(hidden)
        self.head = GridHead(hidden, LogGrid(low=LOWEST, high=HIGHEST, bins=BINS), loss="raft")

    def forward(self, batch: Batch) -> Tensor:
        """(l,) the multipliers in log2."""
        told = self.read(batch)
        x = told[batch.line] + self.begun(told[batch.head])[batch.program]
        states = self.norm(self.blocks(self.drop(x)))
        chances = self.head.readout(states)[:, :-1].softmax(-1)  # the last token is "failed", which no line is
        return chances @ self.head.centres

    def read(self, batch: Batch) -> Tensor:
        """(u, d): the distinct lines."""
        there = (batch.tokens != PAD)[:, None]
        x = (self.embed(batch.tokens) + self.place(batch.positions)) * there
        for convolution in self.convolutions:
            x = (x + F.relu(convolution(x.T[None])[0].T)) * there
        total = torch.zeros(batch.distinct, x.shape[1]).index_add(0, batch.of_line, x)
        where = batch.of_line[:, None].expand_as(x)
        most = torch.zeros(batch.distinct, x.shape[1]).scatter_reduce(0, where, x, "amax", include_self=False)
        return self.pooled(torch.cat([total / 8, most], dim=1))


def log2_slowdowns(batch: Batch, multipliers: Tensor) -> Tensor:
    """(g,) log2(sum of the lines' costs / sum of their floors)."""
    zero = torch.zeros(len(batch.head), dtype=multipliers.dtype)
    cost = zero.index_add(0, batch.program, (batch.log2_floors + multipliers).exp2())
    return cost.log2() - zero.index_add(0, batch.program, batch.log2_floors.exp2()).log2()
