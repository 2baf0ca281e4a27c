"""The network that reads a program line by line and says of each line by how much it exceeds its floor.

A line's tokens go through two convolutions and are pooled (sum and maximum: a size is the sum of its magnitudes); lines
then see each other in windows of a transformer, each window with one slot more that stands for the whole program (the
mean of its lines) and for who runs it. So work and memory grow with the length of a program, not with its square, and a
line that occurs often is read once. At every line a numeric token on a grid is
read (`GridHead`); its expectation m is the line's multiplier, and

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
    (t,) count within a line, `of_line` (t,) says whose a token is, of `lines`. Those of programs are numbers of them:
    `windows` (w, W), -1 after the last. `of_program` (w,) says whose a window is, `engine` (g,) is the number of the
    line that names who runs program g. Lines count window by window: `log2_floors` (l,)."""

    tokens: Tensor
    positions: Tensor
    of_line: Tensor
    lines: int
    windows: Tensor
    of_program: Tensor
    engine: Tensor
    log2_floors: Tensor

    @property
    def program_of_line(self) -> Tensor:
        """(l,) whose it is."""
        return self.of_program[:, None].expand_as(self.windows)[self.windows >= 0]


def batch_of(programs: Sequence[tuple[Sequence[int], int, Sequence[float]]], texts: Sequence[Sequence[int]], *,
             window: int) -> Batch:  # fmt: skip
    """programs: (numbers of its lines in `texts`, number of the line of its engine, log2 of its lines' floors)."""
    used = sorted({n for lines, engine, _ in programs for n in (*lines, engine)})
    place = {n: at for at, n in enumerate(used)}
    windows, of_program = [], []
    for g, (lines, _, _) in enumerate(programs):
        for start in range(0, len(lines), window):
            windows.append([place[n] for n in lines[start : start + window]])
            of_program.append(g)
    longest = max(map(len, windows))
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
        torch.tensor([[*one, *[-1] * (longest - len(one))] for one in windows]),
        torch.tensor(of_program),
        torch.tensor([place[engine] for _, engine, _ in programs]),
        torch.tensor([floor for _, _, floors in programs for floor in floors], dtype=torch.float32),
    )


class LineReader(nn.Module):
    """The network: see the module. `window` lines see each other."""

    def __init__(self, vocab_size: int, *, hidden: int, layers: int, heads: int, window: int, dropout: float) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocab_size, hidden)
        self.place = nn.Embedding(POSITIONS, hidden)
        self.convolutions = nn.ModuleList(nn.Conv1d(hidden, hidden, 2 * REACH + 1, padding=REACH) for _ in range(2))
        self.pooled = nn.Linear(2 * hidden, hidden)
        self.position = nn.Embedding(window + 1, hidden)
        self.summary, self.engine = nn.Linear(hidden, hidden), nn.Linear(hidden, hidden)
        self.drop = nn.Dropout(dropout)
        layer = nn.TransformerEncoderLayer(
            hidden, heads, 4 * hidden, dropout, activation="gelu", batch_first=True, norm_first=True
        )
        self.context = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(hidden)
        self.head = GridHead(hidden, LogGrid(low=LOWEST, high=HIGHEST, bins=BINS), loss="raft")

    def forward(self, batch: Batch) -> Tensor:
        """(l,) the multipliers in log2."""
        lines = self.read(batch)
        inside = batch.windows >= 0
        whose = batch.program_of_line
        told = lines[batch.windows[inside]]
        total = torch.zeros(len(batch.engine), lines.shape[1], dtype=told.dtype).index_add(0, whose, told)
        mean = total / torch.bincount(whose, minlength=len(batch.engine))[:, None]
        engine = self.engine(lines[batch.engine])
        slot = (engine + self.summary(mean))[batch.of_program][:, None]
        x = (lines[batch.windows.clamp_min(0)] + engine[batch.of_program][:, None]) * inside[..., None]
        x = self.drop(torch.cat([slot, x], dim=1)) + self.position.weight[: x.shape[1] + 1]
        hidden = torch.cat([torch.zeros_like(inside[:, :1]), ~inside], dim=1)
        states = self.norm(self.context(x, src_key_padding_mask=hidden)[:, 1:][inside])
        chances = self.head.readout(states)[:, :-1].softmax(-1)  # the last token is "failed", which no line is
        return chances @ self.head.centres

    def read(self, batch: Batch) -> Tensor:
        """(u, d): the distinct lines."""
        there = (batch.tokens != PAD)[:, None]
        x = (self.embed(batch.tokens) + self.place(batch.positions)) * there
        for convolution in self.convolutions:
            x = (x + F.relu(convolution(x.T[None])[0].T)) * there
        total = torch.zeros(batch.lines, x.shape[1]).index_add(0, batch.of_line, x)
        where = batch.of_line[:, None].expand_as(x)
        most = torch.zeros(batch.lines, x.shape[1]).scatter_reduce(0, where, x, "amax", include_self=False)
        return self.pooled(torch.cat([total / 8, most], dim=1))


def log2_slowdowns(batch: Batch, multipliers: Tensor) -> Tensor:
    """(g,) log2(sum of the lines' costs / sum of their floors)."""
    whose, count = batch.program_of_line, len(batch.engine)
    zero = torch.zeros(count, dtype=multipliers.dtype)
    cost = zero.index_add(0, whose, (batch.log2_floors + multipliers).exp2())
    return cost.log2() - zero.index_add(0, whose, batch.log2_floors.exp2()).log2()
