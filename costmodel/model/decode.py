"""From logits to distributions over z = log2 slowdown: exact where that is possible, by given uniforms elsewhere.

A log grid needs one softmax. Digits need a tree of decoder calls: a node is a string of number tokens, its keys and
values are shared with its parent, and only distinct nodes are run. `sample` walks the tree by inverse CDF with given
uniforms; `enumerate_leaves` expands every node whose mass matters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from costmodel.model.decoder import Branches, PrefixCache, branch
from costmodel.ops.numeric_step import numeric_step


@dataclass(frozen=True, slots=True, eq=False)
class Distribution:
    """M distributions over z. Row sums of `weights` are 1: they are conditional on success.

    support, weights (M, S) with ascending support; p_fail (M,). Spare columns carry weight 0.
    """

    support: Tensor
    weights: Tensor
    p_fail: Tensor

    def mean(self) -> Tensor:
        """The exact expectation of z (M,)."""
        return (self.support * self.weights).sum(-1)

    def quantile(self, q: float) -> Tensor:
        """Inverse CDF (M,), linear between the midpoints of the support; q in [0, 1]."""
        if not 0.0 <= q <= 1.0:
            raise ValueError(f"got q={q}, expected 0 <= q <= 1")
        middles = (self.support[:, 1:] + self.support[:, :-1]) / 2
        edges = torch.cat([self.support[:, :1], middles, self.support[:, -1:]], -1)
        cdf = self.weights.cumsum(-1)
        at = (cdf < min(q, 1 - 1e-12) * cdf[:, -1:]).sum(-1, keepdim=True).clamp_max(cdf.shape[1] - 1)
        weight = self.weights.gather(1, at)
        inside = ((q * cdf[:, -1:] - cdf.gather(1, at) + weight) / weight.clamp_min(1e-300)).clamp(0, 1)
        return edges.gather(1, at).lerp(edges.gather(1, at + 1), inside)[:, 0]


def from_grid(logits: Tensor, centres: Tensor) -> Distribution:
    """logits (M, bins + 1), the last for the failed token; centres (bins,) ascending."""
    logits = logits.double()
    weights = logits[:, :-1].softmax(-1)
    p_fail = logits.softmax(-1)[:, -1]
    return Distribution(centres.double().expand(len(logits), -1), weights, p_fail)


def mixture(members: Sequence[Distribution]) -> Distribution:
    """The average of an ensemble: each member weighs by the probability it gives to success."""
    p_fail = torch.stack([m.p_fail for m in members]).mean(0)
    shares = torch.stack([1 - m.p_fail for m in members]).clamp_min(1e-12)
    shares = (shares / shares.sum(0))[..., None]  # (members, M, 1)
    first = members[0].support
    if all(m.support.shape == first.shape and torch.equal(m.support, first) for m in members):
        weights = sum((share * m.weights for share, m in zip(shares, members, strict=True)), torch.zeros_like(first))
        return Distribution(first, weights, p_fail)
    support = torch.cat([m.support for m in members], -1)
    weights = torch.cat([share * m.weights for share, m in zip(shares, members, strict=True)], -1)
    support, order = support.sort(-1)
    return Distribution(support, weights.gather(1, order), p_fail)


@dataclass(frozen=True, slots=True, eq=False)
class Level:
    """N strings of number tokens of one length: logits (N, V) of what follows each, and the grammar's state (N,)."""

    origin: PrefixCache | Branches
    logits: Tensor
    state: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class NumberWriter:
    """A backbone that writes number tokens: their embeddings (V, D), which also read it out, and the grammar's tables.

    legal, value, next_state (states, V): see `costmodel.ops.numeric_step`. forced (F,): the tokens with which every
    string begins; a root stands behind them, so they cost no decoder call of their own.
    """

    backbone: PreTrainedModel
    embeddings: Tensor
    legal: Tensor
    value: Tensor
    next_state: Tensor
    num_tokens: int
    forced: Tensor

    def grow(self, level: Level, parents: Tensor, tokens: Tensor) -> Level:
        """One decoder call for N new strings: string i is parents[i] of `level` followed by tokens[i]."""
        branches, hidden = branch(self.backbone, level.origin, parents, self.embeddings[tokens])
        logits = (hidden @ self.embeddings.t()).float()
        return Level(branches, logits, self.next_state[level.state[parents], tokens])

    def probabilities(self, level: Level) -> Tensor:
        """Of each token after each string (N, V) float64: 0 where the grammar forbids."""
        return level.logits.masked_fill(~self.legal[level.state], float("-inf")).softmax(-1).double()

    def step(self, level: Level, node: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
        """The tokens (S,) after the strings `node` (S,) of a level, by uniforms (S,), and what is left of those."""
        tables = self.legal, self.value, self.next_state
        step = numeric_step(level.logits[node], level.state[node], uniforms, *tables)
        return step.token, step.uniform


def sample(writer: NumberWriter, root: Level, uniforms: Tensor) -> Tensor:
    """uniforms (S,) float64 in [0, 1) -> S strings (S, num_tokens). Equal beginnings are run once."""
    node = torch.zeros(len(uniforms), dtype=torch.long)
    level, strings = root, list(writer.forced[:, None].expand(-1, len(uniforms)))
    for position in range(len(writer.forced), writer.num_tokens):
        tokens, uniforms = writer.step(level, node, uniforms)
        strings.append(tokens)
        if position + 1 < writer.num_tokens:
            vocabulary = level.logits.shape[1]
            distinct, node = torch.unique(node * vocabulary + tokens, return_inverse=True)
            level = writer.grow(level, distinct // vocabulary, distinct % vocabulary)
    return torch.stack(strings, -1)


def enumerate_strings(
    writer: NumberWriter, root: Level, *, missing_mass: float = 1e-3, branch_mass: float = 4e-3
) -> tuple[Tensor, Tensor]:
    """The strings that matter: tokens (N, num_tokens) and probabilities (N,), whose sum is at least 1 - missing_mass.

    At each token the lightest strings are dropped while they stay within their share of `missing_mass`, and siblings
    that are light are merged (`_merged`), so their value is off by a part of what that digit says. The last token
    always forks: that needs no decoder call. With both at 0 nothing is left out or rounded.
    """
    level, strings = root, writer.forced[None]
    mass = torch.ones(1, dtype=torch.float64)
    for position in range(len(writer.forced), writer.num_tokens):
        last = position + 1 == writer.num_tokens
        p = writer.probabilities(level)
        children = mass[:, None] * p
        children = (children if last else _merged(children, branch_mass)).flatten()
        heaviest, order = children.sort(descending=True)
        spare = heaviest.flip(0).cumsum(0).flip(0)  # the mass from here on
        kept = (heaviest > 0) & (spare > missing_mass / writer.num_tokens)
        chosen = order[kept].sort().values
        parents, tokens = chosen // p.shape[1], chosen % p.shape[1]
        strings, mass = torch.cat([strings[parents], tokens[:, None]], -1), children[chosen]
        if not last:
            level = writer.grow(level, parents, tokens)
    return strings, mass


def _merged(children: Tensor, branch_mass: float) -> Tensor:
    """Masses of the children of N strings (N, V), in the order of their tokens, where neighbours are merged.

    Those whose middles fall in one bucket of `branch_mass` leave their mass to their median. A child as heavy as that
    stays by itself, but for lighter neighbours that it takes in, and a string as light has one child.
    """
    if not branch_mass:
        return children
    upto = children.cumsum(-1)
    bucket = ((upto - children / 2) / branch_mass).long()
    member = bucket[:, :, None] == bucket[:, None, :]  # (N, V, V)
    total = (member * children[:, None, :]).sum(-1)
    below = (member * children[:, None, :]).tril(-1).sum(-1)  # of the same bucket, by earlier tokens
    median = (below <= total / 2) & (total / 2 < below + children)
    return torch.where(median, total, 0.0)
