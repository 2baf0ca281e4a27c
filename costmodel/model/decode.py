"""From logits to distributions over z = log2 slowdown: exact where that is possible, by given uniforms elsewhere.

A log grid needs one softmax. Digits need a tree of decoder calls: a node is a string of number tokens, its keys and
values are shared with its parent, and only distinct nodes are run. `sample` walks the tree by inverse CDF with given
uniforms; `enumerate_strings` expands every node whose mass matters; `beam` looks for the most probable string. The
grammar is a table on the device, so no string costs a call of Python.

A distribution is read as one number by the Bayes rule of a loss (RAIL; Lukasik et al., 2024): see `read`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from costmodel.model.decoder import Branches, PrefixCache, branch
from costmodel.ops.numeric_step import numeric_step
from costmodel.records import UserError, check_readout

SAMPLES_AT_ONCE = 16384


@dataclass(frozen=True, slots=True, eq=False)
class Distribution:
    """M distributions over z. Row sums of `weights` are 1: they are conditional on success.

    support, weights (M, S) with ascending support; p_fail (M,). Spare columns weigh 0. own (M, S), of digits: the
    probability of the very string at a point, where `weights` has that of light neighbours too; None for a grid.
    """

    support: Tensor
    weights: Tensor
    p_fail: Tensor
    own: Tensor | None = None

    def mean(self) -> Tensor:
        """The exact expectation of z (M,): it errs least by its square."""
        return (self.support * self.weights).sum(-1)

    def mean_raw(self) -> Tensor:
        """log2 of the expectation of 2**z (M,): errs least by the square of the slowdown itself."""
        ln2 = math.log(2)
        return (self.support * ln2 + self.weights.log()).logsumexp(-1) / ln2

    def relative(self) -> Tensor:
        """The x (M,) that errs least by |2**z - 2**x| / 2**z: a median in which each z weighs by 2**-z as well."""
        weights = self.weights * (self.support[:, :1] - self.support).exp2()
        return replace(self, weights=weights / weights.sum(-1, keepdim=True)).quantile(0.5)

    def mode(self) -> Tensor:
        """The most probable string (M,), or the middle of the bin of a grid that is the densest."""
        if self.own is not None:
            score = self.own
        elif self.support.shape[1] == 1:
            score = self.weights
        else:
            gaps = self.support.diff(dim=-1)
            around = torch.cat([gaps[:, :1], gaps, gaps[:, -1:]], -1)
            score = self.weights / (around[:, 1:] + around[:, :-1]).clamp_min(1e-300)
        return self.support.gather(1, score.argmax(-1, keepdim=True))[:, 0]

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


_READ: dict[str, Callable[[Distribution], Tensor]] = {
    "mean": Distribution.mean,
    "median": lambda distribution: distribution.quantile(0.5),
    "mode": Distribution.mode,
    "mean-raw": Distribution.mean_raw,
    "relative": Distribution.relative,
}


def read(distribution: Distribution, readout: str) -> Tensor:
    """The distributions as one z each (M,), by a readout of `records.READOUTS`; UserError for any other.

    What `Prediction.read_us` says of one row in microseconds, but that it knows no strings: its mode is the densest.
    """
    check_readout(readout)
    return _READ[readout](distribution)


def stratified(count: int, *, seed: int = 0) -> Tensor:
    """One uniform number from each of `count` equal parts of [0, 1), ascending (count,) float64."""
    within = torch.rand(count, dtype=torch.float64, device="cpu", generator=torch.Generator("cpu").manual_seed(seed))
    return ((torch.arange(count, device="cpu") + within) / count).clamp_max(1 - 2**-53)


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
    owns = [share * m.own for share, m in zip(shares, members, strict=True) if m.own is not None]
    if not owns and all(m.support.shape == first.shape and torch.equal(m.support, first) for m in members):
        weights = sum((share * m.weights for share, m in zip(shares, members, strict=True)), torch.zeros_like(first))
        return Distribution(first, weights, p_fail)
    support = torch.cat([m.support for m in members], -1)
    weights = torch.cat([share * m.weights for share, m in zip(shares, members, strict=True)], -1)
    support, order = support.sort(-1)
    if len(owns) < len(members):
        return Distribution(support, weights.gather(1, order), p_fail)
    upto = F.pad(torch.cat(owns, -1).gather(1, order).cumsum(-1), (1, 0))  # one string may come from several members
    after, before = (torch.searchsorted(support, support, right=right) for right in (True, False))
    return Distribution(support, weights.gather(1, order), p_fail, upto.gather(1, after) - upto.gather(1, before))


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
        return self.log_probabilities(level).exp()

    def log_probabilities(self, level: Level) -> Tensor:
        return level.logits.double().masked_fill(~self.legal[level.state], float("-inf")).log_softmax(-1)

    def step(self, level: Level, node: Tensor, uniforms: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        """The tokens (S,) after the strings `node` (S,) of a level, by uniforms (S,), and what is left of those."""
        tables = self.legal, self.value, self.next_state
        step = numeric_step(level.logits[node], level.state[node], uniforms, *tables, temperature=temperature)
        return step.token, step.uniform


def sample(
    writer: NumberWriter, root: Level, uniforms: Tensor, *, temperature: float = 1.0, chunk: int = SAMPLES_AT_ONCE
) -> Tensor:
    """uniforms (S,) float64 in [0, 1) -> S strings (S, num_tokens). Equal beginnings are run once.

    Each token is drawn from its softmax at `temperature`, under the grammar. `chunk` bounds the memory: so many samples
    are drawn at once, neighbours by their uniforms, which have most in common.
    """
    uniforms = uniforms.to(root.logits.device)
    order = uniforms.argsort()
    drawn = torch.cat([_sample(writer, root, part, temperature) for part in uniforms[order].split(chunk)])
    return torch.empty_like(drawn).index_copy_(0, order, drawn)


def _sample(writer: NumberWriter, root: Level, uniforms: Tensor, temperature: float) -> Tensor:
    node = torch.zeros(len(uniforms), dtype=torch.long, device=uniforms.device)
    level, strings = root, list(writer.forced[:, None].expand(-1, len(uniforms)))
    for position in range(len(writer.forced), writer.num_tokens):
        tokens, uniforms = writer.step(level, node, uniforms, temperature)
        strings.append(tokens)
        if position + 1 < writer.num_tokens:
            vocabulary = level.logits.shape[1]
            distinct, node = torch.unique(node * vocabulary + tokens, return_inverse=True)
            level = writer.grow(level, distinct // vocabulary, distinct % vocabulary)
    return torch.stack(strings, -1)


def beam(writer: NumberWriter, root: Level, width: int) -> tuple[Tensor, Tensor]:
    """The most probable strings (W, num_tokens), W <= width, and their log-probabilities (W,), descending.

    At each token the `width` most probable beginnings are kept: 1 is greedy, as many as there are strings is exact.
    """
    if width < 1:
        raise UserError(f"got a beam of width {width}, expected 1 or more")
    level, strings = root, writer.forced[None]
    score = torch.zeros(1, dtype=torch.float64, device=root.logits.device)
    for position in range(len(writer.forced), writer.num_tokens):
        ways = score[:, None] + writer.log_probabilities(level)
        score, chosen = ways.flatten().topk(min(width, int(ways.isfinite().sum())))
        parents, tokens = chosen // ways.shape[1], chosen % ways.shape[1]
        strings = torch.cat([strings[parents], tokens[:, None]], -1)
        if position + 1 < writer.num_tokens:
            level = writer.grow(level, parents, tokens)
    return strings, score


def log_probability(writer: NumberWriter, root: Level, strings: Tensor) -> Tensor:
    """strings (N, num_tokens) -> the log-probability (N, num_tokens) float64 of each token after those before it.

    Under the grammar: rows sum to the log-probability of what `sample` draws; -inf where a token is not allowed. Equal
    beginnings are run once.
    """
    told = [torch.zeros(len(strings), dtype=torch.float64, device=strings.device)] * len(writer.forced)
    node = torch.zeros(len(strings), dtype=torch.long, device=strings.device)
    level = root
    for position in range(len(writer.forced), writer.num_tokens):
        tokens = strings[:, position]
        told.append(writer.log_probabilities(level)[node, tokens])
        if position + 1 < writer.num_tokens:
            vocabulary = level.logits.shape[1]
            distinct, node = torch.unique(node * vocabulary + tokens, return_inverse=True)
            level = writer.grow(level, distinct // vocabulary, distinct % vocabulary)
    begins = (strings[:, : len(writer.forced)] == writer.forced).all(-1)
    told_or_not = torch.stack(told, -1).nan_to_num(nan=-math.inf, neginf=-math.inf)  # NaN: behind what is not allowed
    return told_or_not.masked_fill(~begins[:, None], -math.inf)


def enumerate_strings(
    writer: NumberWriter, root: Level, *, length: int | None = None, missing_mass: float = 1e-3,
    branch_mass: float = 4e-3,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The strings that matter (N, num_tokens); their masses (N,), whose sum is at least 1 - missing_mass; and their own
    probabilities (N,), without what light siblings left them. length: of the first so many tokens alone.

    At each token the lightest strings are dropped while they stay within their share of `missing_mass`, and siblings
    that are light are merged (`_merged`), so their value is off by a part of what that digit says. The last token
    always forks: that needs no decoder call. With both at 0 nothing is left out or rounded.
    """
    level, strings, length = root, writer.forced[None], length or writer.num_tokens
    mass = own = torch.ones(1, dtype=torch.float64, device=root.logits.device)
    for position in range(len(writer.forced), length):
        last = position + 1 == length
        p = writer.probabilities(level)
        children = mass[:, None] * p
        children = (children if last else _merged(children, branch_mass)).flatten()
        heaviest, order = children.sort(descending=True)
        spare = heaviest.flip(0).cumsum(0).flip(0)  # the mass from here on
        kept = (heaviest > 0) & (spare > missing_mass / length)
        chosen = order[kept].sort().values
        parents, tokens = chosen // p.shape[1], chosen % p.shape[1]
        strings, mass = torch.cat([strings[parents], tokens[:, None]], -1), children[chosen]
        own = own[parents] * p[parents, tokens]
        if not last:
            level = writer.grow(level, parents, tokens)
    return strings, mass, own


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
