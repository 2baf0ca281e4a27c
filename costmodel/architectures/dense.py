"""Families of dense layers: mlp, norm (chains of normalisations and elementwise operators), embedding."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise

import torch
from torch import nn

from costmodel.architectures.draws import Built, Draw, Lambda, Residual

JOINS: tuple[Callable[..., torch.Tensor], ...] = (torch.add, torch.mul, torch.maximum, torch.sub)


def norm_of(kind: str, width: int) -> nn.Module:
    """Of rows of features."""
    if kind == "layer":
        return nn.LayerNorm(width)
    if kind == "rms":
        return nn.RMSNorm(width)
    return nn.BatchNorm1d(width)


def mlp(draw: Draw) -> Built:
    """Dense layers: even, random, bottleneck or growing widths, with or without normalisation and residuals."""
    depth, shape = draw.whole(1, 10), draw.one("even", "random", "bottleneck", "growing")
    base = draw.size(16, 1536, 8)
    batch = draw.batch_of(1, 512)
    if shape == "even":
        widths = [base] * (depth + 1)
    elif shape == "random":
        widths = [draw.size(16, 1536, 8) for _ in range(depth + 1)]
    elif shape == "bottleneck":
        widths = [max(8, base >> min(i, depth - i)) for i in range(depth + 1)]
    else:
        widths = [max(8, base >> (depth - i)) for i in range(depth + 1)]
    act, norm, bias = draw.activation(), draw.one("", "", "layer", "rms", "batch"), draw.chance(0.8)
    residual, gated, positions = draw.chance(0.3), draw.chance(0.15), draw.one(0, 0, 0, draw.size(2, 64))

    def make() -> nn.Module:
        layers: list[nn.Module] = []
        for i, (inside, outside) in enumerate(pairwise(widths)):
            parts: list[nn.Module] = [norm_of(norm, inside)] if norm and not (norm == "batch" and positions) else []
            if gated:
                parts += [nn.Linear(inside, 2 * outside, bias=bias), Lambda(nn.functional.glu)]
            else:
                parts += [nn.Linear(inside, outside, bias=bias), *([Lambda(act)] if i < depth - 1 else [])]
            block = nn.Sequential(*parts)
            layers.append(Residual(block) if residual and inside == outside else block)
        return nn.Sequential(*layers)

    shape_of_input = (batch, positions, widths[0]) if positions else (batch, widths[0])
    return draw.built(make, draw.normal(*shape_of_input))


class Chain(nn.Module):
    """Steps on one array, some of which take the first array again."""

    def __init__(self, steps: list[nn.Module], again: list[bool]) -> None:
        super().__init__()
        self.steps, self.again = nn.ModuleList(steps), again

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = x
        for step, again in zip(self.steps, self.again, strict=True):
            x = step(x, first) if again else step(x)
        return x


def scaled(x: torch.Tensor, *, factor: float) -> torch.Tensor:
    return x * factor + 0.125


def centred(x: torch.Tensor, *, dim: int) -> torch.Tensor:
    return x - x.mean(dim, keepdim=True)


def norm(draw: Draw) -> Built:
    """Chains without a matrix product: what memory bounds."""
    batch, positions, width = draw.batch_of(1, 64), draw.size(4, 512), draw.size(16, 2048, 8)
    while batch * positions * width > 1 << 23:
        positions = max(1, positions // 2)
    steps: list[Callable[[], nn.Module]] = []
    again: list[bool] = []
    for _ in range(draw.whole(2, 24)):
        kind = draw.one("norm", "act", "act", "with", "scale", "softmax", "clamp", "mean")
        again.append(kind == "with")
        if kind == "norm":
            steps.append(partial(norm_of, draw.one("layer", "rms"), width))
        elif kind == "act":
            steps.append(partial(Lambda, draw.activation()))
        elif kind == "with":
            steps.append(partial(Lambda, draw.one(*JOINS)))
        elif kind == "scale":
            steps.append(partial(Lambda, scaled, factor=draw.one(0.5, 0.1, 1.5)))
        elif kind == "softmax":
            steps.append(partial(Lambda, torch.softmax, dim=draw.one(-1, -1, 1)))
        elif kind == "clamp":
            steps.append(partial(Lambda, torch.clamp, min=-1.0, max=1.0))
        else:
            steps.append(partial(Lambda, centred, dim=draw.one(-1, 1)))
    return draw.built(lambda: Chain([step() for step in steps], again), draw.normal(batch, positions, width))


class Recommender(nn.Module):
    """Tables of categories, means of bags of them, products between features, dense layers on top."""

    def __init__(self, tables: list[int], size: int, dense: int, hidden: list[int], interaction: str) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(rows, size) for rows in tables)
        self.bottom = nn.Linear(dense, size)
        count = len(tables) + 1
        self.interaction = interaction
        width = {"products": count * count + size, "sum": size, "concat": count * size}[interaction]
        self.top = nn.ModuleList(nn.Linear(a, b) for a, b in zip([width, *hidden], [*hidden, 1], strict=True))

    def forward(self, dense: torch.Tensor, *bags: torch.Tensor) -> torch.Tensor:
        found = [torch.relu(self.bottom(dense))]
        for table, bag in zip(self.tables, bags, strict=True):
            found.append(table(bag).mean(1))
        if self.interaction == "sum":
            x = torch.stack(found, 1).sum(1)
        elif self.interaction == "concat":
            x = torch.cat(found, 1)
        else:
            rows = torch.stack(found, 1)
            x = torch.cat([torch.bmm(rows, rows.transpose(1, 2)).flatten(1), found[0]], 1)
        for i, layer in enumerate(self.top):
            x = layer(x)
            x = torch.relu(x) if i < len(self.top) - 1 else torch.sigmoid(x)
        return x


def embedding(draw: Draw) -> Built:
    tables = [draw.size(16, 100_000) for _ in range(draw.whole(1, 12))]
    size, dense, bag = draw.size(4, 192, 4), draw.size(4, 256), draw.size(1, 48)
    hidden = [draw.size(16, 768, 8) for _ in range(draw.whole(1, 4))]
    batch, interaction = draw.batch_of(1, 384), draw.one("products", "sum", "concat")
    bags = [draw.tokens(rows, batch, bag) for rows in tables]
    return draw.built(lambda: Recommender(tables, size, dense, hidden, interaction), draw.normal(batch, dense), *bags)


FAMILIES = {"mlp": mlp, "norm": norm, "embedding": embedding}
