"""The conv family: plain, residual, depthwise, branching, U-shaped and one-dimensional convolutional networks."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn

from costmodel.architectures.draws import Built, Draw, Lambda, Residual

Act = Callable[[torch.Tensor], torch.Tensor]


def unit(
    inside: int, outside: int, kernel: int, act: Act, *, stride: int = 1, groups: int = 1, norm: str = ""
) -> nn.Module:
    """Convolution, normalisation, activation."""
    layers: list[nn.Module] = [nn.Conv2d(inside, outside, kernel, stride, kernel // 2, groups=groups, bias=not norm)]
    if norm:
        layers.append(nn.BatchNorm2d(outside) if norm == "batch" else nn.GroupNorm(math.gcd(4, outside), outside))
    return nn.Sequential(*layers, Lambda(act))


class Squeeze(nn.Module):
    """Squeeze and excitation: each channel scaled by what all of them hold."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(width, max(4, width // 8), 1), nn.Conv2d(max(4, width // 8), width, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale = self.up(torch.relu(self.down(nn.functional.adaptive_avg_pool2d(x, 1))))
        return x * torch.sigmoid(scale)


class Branches(nn.Module):
    """Several ways side by side, concatenated."""

    def __init__(self, ways: list[nn.Module]) -> None:
        super().__init__()
        self.ways = nn.ModuleList(ways)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([way(x) for way in self.ways], 1)


class Head(nn.Module):
    """Classes from the mean over all places."""

    def __init__(self, body: nn.Module, width: int, classes: int) -> None:
        super().__init__()
        self.body, self.out = body, nn.Linear(width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.body(x).flatten(2).mean(2))


class Down(nn.Module):
    """One level of a U: down, what lies below, up, and the way across."""

    def __init__(self, width: int, below: nn.Module | None, act: Act, norm: str) -> None:
        super().__init__()
        self.before = unit(width, width, 3, act, norm=norm)
        self.pool = nn.MaxPool2d(2)
        self.wider = unit(width, 2 * width, 3, act, norm=norm)
        self.below = below or nn.Identity()
        self.up = nn.ConvTranspose2d(2 * width, width, 2, 2)
        self.after = unit(2 * width, width, 3, act, norm=norm)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.before(x)
        return self.after(torch.cat([x, self.up(self.below(self.wider(self.pool(x))))], 1))


def conv(draw: Draw) -> Built:
    style = draw.one("plain", "residual", "bottleneck", "depthwise", "branches", "u", "one-dimensional")
    batch, image = draw.batch_of(1, 16), draw.size(8, 96, 8)
    width, stages, blocks = draw.size(8, 96, 8), draw.whole(1, 4), draw.whole(1, 3)
    act, norm, kernel = draw.activation(), draw.one("", "batch", "batch", "group"), draw.one(3, 3, 5)
    squeeze, classes, pool = draw.chance(0.25), draw.size(10, 1000), draw.one(nn.MaxPool2d, nn.AvgPool2d)
    while batch * image * image * width * width * stages * blocks > 1 << 29:
        if batch > 1 and draw.batch is None:
            batch = max(1, batch // 2)
        elif image > 8:
            image = max(8, image // 2)
        else:
            width = max(8, width // 2)
    if style == "u":
        image = max(16, image // 16 * 16)
        depth = min(stages, 3)

        def make_u() -> nn.Module:
            below: nn.Module | None = None
            for level in reversed(range(depth)):
                below = Down(width << level, below, act, norm)
            return nn.Sequential(unit(3, width, 3, act), below or nn.Identity(), nn.Conv2d(width, 1, 1))

        return draw.built(make_u, draw.normal(batch, 3, image, image))
    if style == "one-dimensional":
        length, causal = image * draw.one(4, 8, 16), draw.chance(0.5)

        def make_line() -> nn.Module:
            layers: list[nn.Module] = [nn.Conv1d(4, width, 1)]
            for level in range(stages * blocks):
                spread = 2 ** (level % 6)
                pads = ((kernel - 1) * spread, 0) if causal else ((kernel - 1) * spread // 2,) * 2
                inner = [nn.ConstantPad1d(pads, 0.0), nn.Conv1d(width, width, kernel, dilation=spread), Lambda(act)]
                layers.append(Residual(nn.Sequential(*inner)))
            return nn.Sequential(*layers, nn.Conv1d(width, 4, 1))

        return draw.built(make_line, draw.normal(batch, 4, length))

    def block(inside: int) -> nn.Module:
        if style == "plain":
            inner = unit(inside, inside, kernel, act, norm=norm)
        elif style == "residual":
            inner = Residual(nn.Sequential(*(unit(inside, inside, kernel, act, norm=norm) for _ in range(2))))
        elif style == "bottleneck":
            thin = max(4, inside // 4)
            parts = [unit(inside, thin, 1, act, norm=norm), unit(thin, thin, kernel, act, norm=norm)]
            inner = Residual(nn.Sequential(*parts, unit(thin, inside, 1, act, norm=norm)))
        elif style == "depthwise":
            wide = 4 * inside
            parts = [unit(inside, wide, 1, act, norm=norm), unit(wide, wide, kernel, act, groups=wide, norm=norm)]
            parts += [Squeeze(wide)] if squeeze else []
            inner = Residual(nn.Sequential(*parts, nn.Conv2d(wide, inside, 1)))
        else:
            quarter = max(2, inside // 4)
            ways = [unit(inside, quarter, 1, act, norm=norm), unit(inside, quarter, kernel, act, norm=norm)]
            ways.append(nn.Sequential(unit(inside, quarter, 1, act), unit(quarter, quarter, 3, act, norm=norm)))
            ways.append(nn.Sequential(nn.AvgPool2d(3, 1, 1), unit(inside, inside - 3 * quarter, 1, act)))
            return Branches(ways)
        return nn.Sequential(inner, Squeeze(inside)) if squeeze and style != "depthwise" else inner

    def make() -> nn.Module:
        layers: list[nn.Module] = [unit(3, width, kernel, act, norm=norm)]
        now = width
        for stage in range(stages):
            layers += [block(now) for _ in range(blocks)]
            if stage < stages - 1 and image >> (stage + 1) >= 4:
                layers += [pool(2)] if draw_pool else []
                layers.append(unit(now, 2 * now, 3, act, stride=1 if draw_pool else 2, norm=norm))
                now *= 2
        return Head(nn.Sequential(*layers), now, classes)

    draw_pool = draw.chance(0.4)
    return draw.built(make, draw.normal(batch, 3, image, image))


FAMILIES = {"conv": conv}
