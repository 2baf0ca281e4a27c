"""Families of sequences: attention (transformers of many kinds), recurrent (cells and torch's own), moe."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from costmodel.architectures.dense import norm_of
from costmodel.architectures.draws import Built, Draw


@dataclass(frozen=True)
class Kind:
    """What a transformer block is made of."""

    width: int
    heads: int
    shared: int  # heads that share keys and values
    causal: bool
    fused: bool  # torch's own attention, or products and a softmax
    rotary: bool
    norm: str
    before: bool  # normalisation before or after
    feed: str  # "gelu", "relu", "gated", "none"
    ratio: int
    bias: bool
    parallel: bool


class Attention(nn.Module):
    """Of a sequence to itself, or to a context."""

    def __init__(self, kind: Kind) -> None:
        super().__init__()
        self.kind, self.size = kind, kind.width // kind.heads
        self.groups = kind.heads // kind.shared
        self.q = nn.Linear(kind.width, kind.width, bias=kind.bias)
        self.kv = nn.Linear(kind.width, 2 * self.groups * self.size, bias=kind.bias)
        self.out = nn.Linear(kind.width, kind.width, bias=kind.bias)

    def forward(self, x: torch.Tensor, context: torch.Tensor | None = None) -> torch.Tensor:
        kind, (batch, length, width) = self.kind, x.shape
        source = x if context is None else context
        q = self.q(x).view(batch, length, kind.heads, self.size).transpose(1, 2)
        k, v = self.kv(source).view(batch, source.shape[1], 2, self.groups, self.size).permute(2, 0, 3, 1, 4).unbind(0)
        if kind.rotary and context is None:
            q, k = rotated(q), rotated(k)
        if kind.shared > 1:
            k, v = k.repeat_interleave(kind.shared, 1), v.repeat_interleave(kind.shared, 1)
        causal = kind.causal and context is None
        if kind.fused:
            y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal)
        else:
            scores = q @ k.transpose(-2, -1) / math.sqrt(self.size)
            if causal:
                mask = torch.ones(length, length, dtype=torch.bool, device=x.device).tril()
                scores = scores.masked_fill(~mask, -1e9)
            y = torch.softmax(scores, -1) @ v
        return self.out(y.transpose(1, 2).reshape(batch, length, width))


def rotated(x: torch.Tensor) -> torch.Tensor:
    """Rotary positions (Su et al. 2021), angles computed on the way."""
    half = x.shape[-1] // 2
    rates = torch.exp(torch.arange(half, device=x.device) * (-math.log(10000.0) / half))
    angles = torch.arange(x.shape[-2], device=x.device)[:, None] * rates
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    a, b = x[..., :half], x[..., half : 2 * half]
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)


class Feed(nn.Module):
    """The two dense layers of a block, gated or not."""

    def __init__(self, kind: Kind) -> None:
        super().__init__()
        self.kind, wide = kind, kind.ratio * kind.width
        self.up = nn.Linear(kind.width, 2 * wide if kind.feed == "gated" else wide, bias=kind.bias)
        self.down = nn.Linear(wide, kind.width, bias=kind.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.up(x)
        if self.kind.feed == "gated":
            gate, x = x.chunk(2, -1)
            x = nn.functional.silu(gate) * x
        else:
            x = nn.functional.gelu(x) if self.kind.feed == "gelu" else torch.relu(x)
        return self.down(x)


class Block(nn.Module):
    """Attention, attention to a context where it is `crossed`, and dense layers, each with its normalisation."""

    def __init__(self, kind: Kind, feed: nn.Module | None = None, *, crossed: bool = False) -> None:
        super().__init__()
        self.kind, self.attention = kind, Attention(kind)
        self.feed = feed if feed is not None else Feed(kind) if kind.feed != "none" else None
        self.cross = Attention(kind) if crossed else None
        count = 1 + (self.feed is not None and not kind.parallel) + crossed
        self.norms = nn.ModuleList(norm_of(kind.norm, kind.width) for _ in range(count))

    def forward(self, x: torch.Tensor, context: torch.Tensor | None = None) -> torch.Tensor:
        norms = iter(self.norms)
        if self.kind.parallel and self.feed is not None:
            y = next(norms)(x)
            x = x + self.attention(y) + self.feed(y)
        else:
            x = self.add(x, next(norms), self.attention)
        if self.cross is not None:
            norm = next(norms)
            x = x + self.cross(norm(x), context)
        if self.feed is not None and not self.kind.parallel:
            x = self.add(x, next(norms), self.feed)
        return x

    def add(self, x: torch.Tensor, norm: nn.Module, inner: nn.Module) -> torch.Tensor:
        return x + inner(norm(x)) if self.kind.before else norm(x + inner(x))


class Transformer(nn.Module):
    """Blocks over tokens or over given vectors, with a head over the vocabulary, over classes, or none."""

    def __init__(self, blocks: list[nn.Module], width: int, vocabulary: int, positions: int, head: str) -> None:
        super().__init__()
        self.blocks, self.head = nn.ModuleList(blocks), head
        self.tokens = nn.Embedding(vocabulary, width) if vocabulary else None
        self.positions = nn.Parameter(torch.empty(positions, width)) if positions else None
        if head != "none":
            self.out = nn.Linear(width, vocabulary if head == "tokens" and vocabulary else 16)

    def forward(self, x: torch.Tensor, *context: torch.Tensor) -> torch.Tensor:
        x = self.tokens(x) if self.tokens is not None else x
        x = x + self.positions if self.positions is not None else x
        for block in self.blocks:
            x = block(x, *context)
        if self.head == "none":
            return x
        return self.out(x.mean(1) if self.head == "classes" else x)


def kind_of(draw: Draw) -> Kind:
    size, heads = draw.one(8, 16, 32, 64), draw.one(1, 2, 4, 8, 12)
    return Kind(
        width=size * heads, heads=heads, shared=draw.one(1, 1, 1, 2, 4) if heads % 4 == 0 else 1,
        causal=draw.chance(0.5), fused=draw.chance(0.6), rotary=draw.chance(0.3),
        norm=draw.one("layer", "layer", "rms"), before=draw.chance(0.75),
        feed=draw.one("gelu", "gelu", "relu", "gated", "none"), ratio=draw.one(1, 2, 4, 4), bias=draw.chance(0.6),
        parallel=draw.chance(0.15),
    )  # fmt: skip


def lengths(draw: Draw, width: int, layers: int) -> tuple[int, int]:
    """Batch and length, so that a thread does not take seconds."""
    batch, length = draw.batch_of(1, 16), draw.size(4, 512, 4)
    while batch * length * width * (12 * width + 2 * length) * layers > 1 << 32:
        if length > 8:
            length //= 2
        else:
            batch = max(1, batch // 2)
    return batch, length


def attention(draw: Draw) -> Built:
    kind, layers = kind_of(draw), draw.whole(1, 6)
    batch, length = lengths(draw, kind.width, layers)
    vocabulary, crossed = draw.one(0, draw.size(64, 16_000)), draw.chance(0.2)
    positions, head = length if draw.chance(0.3) else 0, draw.one("none", "tokens", "classes")
    other = draw.size(4, 128)

    def make() -> nn.Module:
        blocks: list[nn.Module] = [Block(kind, crossed=crossed) for _ in range(layers)]
        return Transformer(blocks, kind.width, vocabulary, positions, head)

    x = draw.tokens(vocabulary, batch, length) if vocabulary else draw.normal(batch, length, kind.width)
    return draw.built(make, x, *([draw.normal(batch, other, kind.width)] if crossed else []))


# ----------------------------------------------------------------------------------------------------------- recurrent


class Cell(nn.Module):
    """A layer of a cell over time, one step after the other."""

    def __init__(self, kind: str, inside: int, width: int) -> None:
        super().__init__()
        gates = {"plain": 1, "gru": 3, "lstm": 4, "light": 2}[kind]
        self.kind, self.width = kind, width
        self.x, self.h = nn.Linear(inside, gates * width), nn.Linear(width, gates * width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.zeros(x.shape[0], self.width, dtype=x.dtype, device=x.device)
        c, outputs = h, []
        projected = self.x(x)
        for step in projected.unbind(1):
            h, c = self.step(step, h, c)
            outputs.append(h)
        return torch.stack(outputs, 1)

    def step(self, x: torch.Tensor, h: torch.Tensor, c: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = self.h(h)
        if self.kind == "plain":
            return torch.tanh(x + y), c
        if self.kind == "light":
            z, n = (x + y).chunk(2, -1)
            z = torch.sigmoid(z)
            return z * h + (1 - z) * torch.tanh(n), c
        if self.kind == "gru":
            xr, xz, xn = x.chunk(3, -1)
            hr, hz, hn = y.chunk(3, -1)
            r, z = torch.sigmoid(xr + hr), torch.sigmoid(xz + hz)
            return z * h + (1 - z) * torch.tanh(xn + r * hn), c
        i, f, g, o = (x + y).chunk(4, -1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c


class Own(nn.Module):
    """torch's own recurrent layers, one operator for all of time."""

    def __init__(self, kind: str, inside: int, width: int, layers: int, *, both: bool) -> None:
        super().__init__()
        maker = {"plain": nn.RNN, "light": nn.GRU, "gru": nn.GRU, "lstm": nn.LSTM}[kind]
        self.inner = maker(inside, width, layers, batch_first=True, bidirectional=both)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x)[0]


class Reader(nn.Module):
    """Tokens or vectors in, a recurrent body, classes from its last step."""

    def __init__(self, body: nn.Module, width: int, vocabulary: int, inside: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, inside) if vocabulary else nn.Identity()
        self.body, self.out = body, nn.Linear(width, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.body(self.tokens(x))[:, -1])


def recurrent(draw: Draw) -> Built:
    kind, own = draw.one("plain", "gru", "lstm", "light"), draw.chance(0.35)
    batch, length = draw.batch_of(1, 64), draw.size(2, 128 if own else 40)
    inside, width, layers = draw.size(8, 384, 8), draw.size(8, 512, 8), draw.whole(1, 3)
    vocabulary, both = draw.one(0, draw.size(64, 8000)), draw.chance(0.3)

    def make() -> nn.Module:
        if own:
            body: nn.Module = Own(kind, inside, width, layers, both=both)
            return Reader(body, 2 * width if both else width, vocabulary, inside)
        cells = [Cell(kind, inside if i == 0 else width, width) for i in range(layers)]
        return Reader(nn.Sequential(*cells), width, vocabulary, inside)

    x = draw.tokens(vocabulary, batch, length) if vocabulary else draw.normal(batch, length, inside)
    return draw.built(make, x)


# ----------------------------------------------------------------------------------------------------------------- moe


class Experts(nn.Module):
    """A mixture of experts in one of three ways: all of them and a weighted sum; the best k's weights fetched for each
    token; or tokens sent to the experts' places by products with a 0/1 matrix, as on a TPU."""

    def __init__(self, width: int, wide: int, experts: int, best: int, way: str) -> None:
        super().__init__()
        self.router = nn.Linear(width, experts, bias=False)
        self.up = nn.Parameter(torch.empty(experts, width, wide))
        self.down = nn.Parameter(torch.empty(experts, wide, width))
        self.experts, self.best, self.way = experts, best, way

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        flat = x.reshape(-1, x.shape[-1])
        shares = torch.softmax(self.router(flat), -1)
        values, places = torch.topk(shares, self.best)
        if self.way == "fetch":
            values = values / values.sum(-1, keepdim=True)
            hidden = torch.einsum("td,tkdh->tkh", flat, self.up[places])
            y = torch.einsum("tkh,tkhd->tkd", nn.functional.silu(hidden), self.down[places])
            return (y * values.unsqueeze(-1)).sum(1).reshape(x.shape)
        chosen = torch.zeros_like(shares).scatter(1, places, values)
        if self.way == "all":
            hidden = nn.functional.silu(torch.einsum("td,edh->teh", flat, self.up))
            y = torch.einsum("teh,ehd->ted", hidden, self.down)
            return (y * chosen.unsqueeze(-1)).sum(1).reshape(x.shape)
        room = max(1, 2 * self.best * flat.shape[0] // self.experts)
        hits = (chosen > 0).to(torch.int64)
        places_of = (torch.cumsum(hits, 0) - 1).clamp(0, room - 1)
        send = nn.functional.one_hot(places_of, room).to(x.dtype) * hits.unsqueeze(-1).to(x.dtype)
        taken = torch.einsum("tec,td->ecd", send, flat)
        hidden = nn.functional.silu(torch.bmm(taken, self.up))
        y = torch.bmm(hidden, self.down)
        return torch.einsum("tec,ecd->td", send * chosen.unsqueeze(-1), y).reshape(x.shape)


def moe(draw: Draw) -> Built:
    kind, layers = kind_of(draw), draw.whole(1, 4)
    batch, length = draw.batch_of(1, 8), draw.size(2, 64, 2)
    experts, way = draw.one(2, 4, 8, 16), draw.one("all", "fetch", "send")
    best, wide = draw.whole(1, 2), draw.one(1, 2, 4) * kind.width
    if way == "fetch":  # each token's own copy of its weights
        while batch * length * best * kind.width * wide > 1 << 23 and batch * length > 1:
            length, batch = (length // 2, batch) if length > 1 else (1, max(1, batch // 2))
    attends, every = draw.chance(0.6), draw.chance(0.7)

    def make() -> nn.Module:
        blocks: list[nn.Module] = []
        for i in range(layers):
            feed = Experts(kind.width, wide, experts, best, way) if every or i % 2 == 0 else Feed(kind)
            blocks.append(Block(kind, feed) if attends else nn.Sequential(norm_of(kind.norm, kind.width), feed))
        return Transformer(blocks, kind.width, 0, 0, "classes")

    return draw.built(make, draw.normal(batch, length, kind.width))


FAMILIES = {"attention": attention, "recurrent": recurrent, "moe": moe}
