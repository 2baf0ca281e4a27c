"""Families without a known shape: mix (random graphs, of which nothing is left unused) and scan (sums, orders, ...)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from costmodel.architectures.draws import Built, Draw


class Mixed(nn.Module):
    """Steps that each read one or two earlier arrays of (batch, width); what nothing has read is joined at the end."""

    def __init__(self, plan: list[tuple[str, tuple[int, ...], Any]], width: int) -> None:
        super().__init__()
        self.plan = plan
        self.layers = nn.ModuleDict()
        for number, (kind, _, extra) in enumerate(plan):
            if kind == "linear":
                self.layers[str(number)] = nn.Linear(width, width)
            elif kind == "wide":
                self.layers[str(number)] = nn.Sequential(nn.Linear(width, extra), nn.GELU(), nn.Linear(extra, width))
            elif kind == "norm":
                self.layers[str(number)] = nn.LayerNorm(width)
            elif kind == "conv":
                self.layers[str(number)] = nn.Conv1d(extra, extra, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made, used = [x], [False]
        for number, (kind, operands, extra) in enumerate(self.plan):
            values = [made[i] for i in operands]
            for i in operands:
                used[i] = True
            made.append(self.step(str(number), kind, values, extra))
            used.append(False)
        ends = [value for value, was_used in zip(made, used, strict=True) if not was_used]
        return torch.stack(ends).sum(0) if len(ends) > 1 else ends[0]

    def step(self, number: str, kind: str, values: list[torch.Tensor], extra: Any) -> torch.Tensor:
        x, y = values[0], values[-1]
        if number in self.layers:
            if kind == "conv":
                batch, width = x.shape
                return self.layers[number](x.view(batch, extra, width // extra)).reshape(batch, width)
            return self.layers[number](x)
        if kind == "act":
            return extra(x)
        if kind == "join":
            return extra(x, y)
        if kind == "gate":
            return torch.sigmoid(x) * y
        if kind == "mix rows":
            return torch.softmax(x @ y.transpose(0, 1), -1) @ y
        if kind == "halves":
            a, b = x.chunk(2, -1)
            return torch.cat([b * torch.tanh(a), a], -1)
        if kind == "turn":
            batch, width = x.shape
            return x.view(batch, extra, width // extra).transpose(1, 2).reshape(batch, width)
        if kind == "softmax":
            return torch.softmax(x, -1) + y
        return x - x.mean(-1, keepdim=True) + y


def mix(draw: Draw) -> Built:
    width, batch, count = draw.size(16, 768, 16), draw.batch_of(1, 256), draw.whole(4, 60)
    plan: list[tuple[str, tuple[int, ...], Any]] = []
    kinds = ("linear", "linear", "wide", "norm", "conv", "act", "act", "join", "join", "gate", "mix rows", "halves",
             "turn", "softmax", "mean")  # fmt: skip
    for number in range(count):
        kind = draw.one(*kinds)
        near = max(0, number - draw.one(0, 1, 3, 10))
        first = draw.whole(near, number)
        second = draw.whole(0, number)
        extra: Any = None
        if kind == "wide":
            extra = draw.size(16, 1024, 8)
        elif kind in ("conv", "turn"):
            extra = draw.one(2, 4, 8, 16)
        elif kind == "act":
            extra = draw.activation()
        elif kind == "join":
            extra = draw.one(torch.add, torch.maximum, torch.sub)
        pair = kind in ("join", "gate", "mix rows", "softmax", "mean")
        plan.append((kind, (first, second) if pair else (first,), extra))
    return draw.built(lambda: Mixed(plan, width), draw.normal(batch, width))


class Scan(nn.Module):
    """Steps over time that are not matrix products: running sums, orders, reductions, recurrences in closed form."""

    def __init__(self, steps: list[tuple[str, int]], width: int) -> None:
        super().__init__()
        self.steps = steps
        self.decay = nn.Parameter(torch.empty(width))
        self.out = nn.Linear(width, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for kind, extra in self.steps:
            x = self.step(kind, extra, x)
        return self.out((x * self.decay).amax(1))

    def step(self, kind: str, extra: int, x: torch.Tensor) -> torch.Tensor:
        if kind == "sums":
            return torch.cumsum(x, 1) / x.shape[1]
        if kind == "decay":  # h_t = a h_(t-1) + x_t over the last few steps
            total, rate = x, torch.sigmoid(self.decay)
            for lag in range(1, min(extra, x.shape[1])):
                moved = nn.functional.pad(x, (0, 0, lag, 0))[:, : x.shape[1]]
                total = total + moved * rate**lag
            return total
        if kind == "order":
            return torch.sort(x, 1)[0]
        if kind == "best":
            values = torch.topk(x, min(extra, x.shape[1]), 1)[0]
            return x - values.mean(1, keepdim=True)
        if kind == "spread":
            return (x - x.mean(1, keepdim=True)) / (x.std(1, keepdim=True) + 1e-3)
        if kind == "extremes":
            return x / (x.amax(1, keepdim=True) - x.amin(1, keepdim=True) + 1e-3)
        if kind == "soft":
            return torch.log_softmax(x, 1).exp() * x
        if kind == "place":
            index = torch.argmax(x, 1, keepdim=True)
            return x + torch.gather(x, 1, index)
        if kind == "flip":
            return x + torch.flip(x, [1])
        if kind == "roll":
            return x + torch.roll(x, extra, 1)
        if kind == "length":
            return x / torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        return x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-6)


def scan(draw: Draw) -> Built:
    batch, length, width = draw.batch_of(1, 32), draw.size(4, 512), draw.size(4, 512, 4)
    while batch * length * width > 1 << 20:
        length = max(2, length // 2)
    kinds = ("sums", "decay", "order", "best", "spread", "extremes", "soft", "place", "flip", "roll", "length", "power")
    steps = [(draw.one(*kinds), draw.whole(1, 8)) for _ in range(draw.whole(1, 12))]
    return draw.built(lambda: Scan(steps, width), draw.normal(batch, length, width))


FAMILIES = {"mix": mix, "scan": scan}
