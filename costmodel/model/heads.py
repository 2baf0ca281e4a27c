"""Numeric heads: what turns hidden states into a distribution over z = log2(latency / reference).

Both heads answer `loss(backbone, prefix, suffix_ids, lengths, targets)` and `distribution(backbone, prefix,
suffix_ids, lengths)`. `GridHead` reads one token off a log grid; `DigitHead` writes a number digit by digit.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from costmodel.codecs.grammar import NumberCodec
from costmodel.codecs.grids import LogGrid
from costmodel.codecs.repeated import Repeated
from costmodel.model import decode
from costmodel.model.decoder import PrefixCache, encode_suffixes, extend, suffix_states
from costmodel.ops.numeric_loss import numeric_loss
from costmodel.ops.numeric_rows import SOFT, Bins, numeric_rows

RANK_WEIGHT = 0.5
RANK_TEMPERATURE = 0.25  # log2 units
RANK_MARGIN = 0.02  # pairs closer than this are ties
RANK_BEST_SHARE, RANK_BEST_WEIGHT = 0.2, 3.0


@dataclass(frozen=True, slots=True, eq=False)
class Targets:
    """What M suffixes of one prefix came to: z (M,) in log2 units (ignored where failed), failed (M,) bool.

    rank_only (M,) bool marks rows gathered by a search, a biased sample: they teach the order and nothing else.
    """

    z: Tensor
    failed: Tensor
    rank_only: Tensor


Parts = dict[str, Tensor]  # the terms of a loss, detached, for the log


def rank_loss(predicted: Tensor, z: Tensor) -> Tensor:
    """Pairwise logistic loss on differences of `predicted` (M,) within a group; 0 where no pair differs.

    Pairs within RANK_MARGIN are left out; a pair with one of the group's best 20 % weighs three times.
    """
    if len(z) < 2:
        return predicted.sum() * 0
    gap = z[:, None] - z[None, :]
    best = z <= z.kthvalue(1 + int(RANK_BEST_SHARE * (len(z) - 1))).values
    weight = torch.where(best, RANK_BEST_WEIGHT, 1.0)
    weights = torch.maximum(weight[:, None], weight[None, :]) * (gap > RANK_MARGIN)
    losses = F.softplus((predicted[None, :] - predicted[:, None]) / RANK_TEMPERATURE)
    return (weights * losses).sum() / weights.sum().clamp_min(1e-9)


class GridHead(nn.Module):
    """One categorical token over a log grid, and a failed token.

    Loss: cross-entropy with HL-Gauss targets (sigma 2 bins) + RAFT, the squared error of the expectation over `z_var`
    (Lukasik et al., 2025) + 0.5 pairwise rank loss. Failures enter the cross-entropy only.
    """

    def __init__(self, hidden_size: int, grid: LogGrid, *, z_var: float = 1.0, sigma_bins: float = 2.0) -> None:
        super().__init__()
        centres = torch.as_tensor(grid.centres, dtype=torch.float32)
        self.grid, self.z_var, self.sigma = grid, z_var, sigma_bins * grid.width
        self.readout = nn.Linear(hidden_size, grid.bins + 1)
        self.register_buffer("centres", centres, persistent=False)
        self.register_buffer("edges", torch.as_tensor(grid.edges, dtype=torch.float32), persistent=False)
        self.register_buffer("legal", torch.ones(1, grid.bins + 1, dtype=torch.bool), persistent=False)
        self.register_buffer("value", F.pad(centres, (0, 1), value=float("nan"))[None], persistent=False)
        self.centres: Tensor
        self.edges: Tensor
        self.legal: Tensor
        self.value: Tensor  # (1, bins + 1): of each token, NaN of the failed one

    def loss(
        self, backbone: PreTrainedModel, prefix: PrefixCache, suffix_ids: Tensor, lengths: Tensor, targets: Targets
    ) -> tuple[Tensor, Parts]:
        return self.loss_of(encode_suffixes(backbone, prefix, suffix_ids, lengths), targets)

    def distribution(
        self, backbone: PreTrainedModel, prefix: PrefixCache, suffix_ids: Tensor, lengths: Tensor
    ) -> decode.Distribution:
        return self.distribution_of(encode_suffixes(backbone, prefix, suffix_ids, lengths))

    def loss_of(self, hidden: Tensor, targets: Targets) -> tuple[Tensor, Parts]:
        """hidden (M, D) -> the loss and its terms: "ce", "raft", "rank"."""
        z, ok, taught = targets.z.float(), ~targets.failed, ~targets.rank_only
        wanted = torch.where(ok, SOFT, self.grid.failed)
        rows = torch.zeros_like(wanted), wanted, self.legal, self.value
        nll, expected = numeric_rows(self.readout(hidden), *rows, y=z, bins=Bins(self.edges, self.sigma))
        ce = _mean(nll[taught])
        regressed = ok & taught  # chosen before the difference: z may be NaN where failed, and 0 * NaN is NaN backward
        raft = _mean((expected[regressed] - z[regressed]).square()) / self.z_var
        rank = rank_loss(expected[ok], z[ok])
        parts = {"ce": ce.detach(), "raft": raft.detach(), "rank": rank.detach()}
        return ce + raft + RANK_WEIGHT * rank, parts

    def distribution_of(self, hidden: Tensor) -> decode.Distribution:
        """hidden (M, D) -> exact distributions."""
        return decode.from_grid(self.readout(hidden), self.centres)


class DigitHead(nn.Module):
    """The slowdown 2**z, or z itself, written as the codec's tokens by the same backbone, after the suffix, under its
    grammar.

    The number tokens have embeddings of their own, tied to the readout, so the text vocabulary stays as it is.
    """

    def __init__(self, hidden_size: int, codec: NumberCodec) -> None:
        super().__init__()
        self.codec = codec
        self.tokens = nn.Embedding(len(codec.vocabulary), hidden_size)
        nn.init.normal_(self.tokens.weight, std=0.02)
        legal = torch.as_tensor(codec.mask).clone()
        if codec.domain == "linear":
            _close_ways_to_what_is_no_slowdown(codec, legal)
        forced, state = [], 0
        while len(ways := [token for token in legal[state].nonzero()[:, 0].tolist() if token != codec.failed]) == 1:
            forced.append(ways[0])
            state = int(codec.next_state[state, ways[0]])
        self.start = state  # of the grammar, behind what every number begins with
        self.register_buffer("forced", torch.tensor(forced, dtype=torch.long), persistent=False)
        given_success = legal.clone()
        given_success[:, codec.failed] = False
        self.register_buffer("legal", legal, persistent=False)
        self.register_buffer("given_success", given_success, persistent=False)
        self.register_buffer("value", torch.full(legal.shape, float("nan")), persistent=False)
        self.register_buffer("next_state", torch.as_tensor(codec.next_state), persistent=False)
        self.legal: Tensor
        self.given_success: Tensor
        self.value: Tensor  # NaN: what a digit stands for depends on those around it
        self.next_state: Tensor
        self.forced: Tensor

    def loss(
        self, backbone: PreTrainedModel, prefix: PrefixCache, suffix_ids: Tensor, lengths: Tensor, targets: Targets
    ) -> tuple[Tensor, Parts]:
        """Cross-entropy of the number strings, failures among them; rows marked rank_only are left out."""
        taught = ~targets.rank_only
        if not taught.any():
            return self.tokens.weight.sum() * 0, {}
        strings, states = self._strings(targets.z[taught], targets.failed[taught])
        hidden = self._hidden(backbone, prefix, suffix_ids[taught], lengths[taught], strings).flatten(0, 1)
        share = torch.full((len(hidden),), 1 / len(strings), device=hidden.device)
        none = torch.zeros_like(share)
        rows = states.flatten(), strings.flatten(), none
        ce, _, _ = numeric_loss(hidden, self.tokens.weight, None, *rows, self.legal, self.value, share, none)
        return ce, {"ce": ce.detach()}

    def distribution(
        self, backbone: PreTrainedModel, prefix: PrefixCache, suffix_ids: Tensor, lengths: Tensor
    ) -> decode.Distribution:
        """By expanding the tree of strings (`decode.enumerate_strings`); what is left out is shared in proportion."""
        writer, rows = self._writer(backbone), []
        for ids, length in zip(suffix_ids, lengths.tolist(), strict=True):
            root, p_fail = self._root(backbone, prefix, ids[:length])
            strings, mass = decode.enumerate_strings(writer, root)
            rows.append((self._values(strings), mass / mass.sum(), p_fail))
        return _stack(rows)

    def sample(
        self, backbone: PreTrainedModel, prefix: PrefixCache, suffix_ids: Tensor, lengths: Tensor, uniforms: Tensor
    ) -> Tensor:
        """uniforms (M, S) float64 in [0, 1) -> samples of z given success (M, S)."""
        writer, rows = self._writer(backbone), []
        for ids, length, u in zip(suffix_ids, lengths.tolist(), uniforms, strict=True):
            root, _ = self._root(backbone, prefix, ids[:length])
            rows.append(self._values(decode.sample(writer, root, u)))
        return torch.stack(rows)

    def _hidden(
        self, backbone: PreTrainedModel, prefix: PrefixCache, suffix_ids: Tensor, lengths: Tensor, strings: Tensor
    ) -> Tensor:
        """The states (M, num_tokens, D) before each token of `strings` (M, num_tokens), written after each suffix."""
        row, steps = torch.arange(len(strings))[:, None], torch.arange(strings.shape[1])
        embeddings = F.pad(backbone.get_input_embeddings()(suffix_ids), (0, 0, 0, strings.shape[1] - 1))
        embeddings = embeddings.index_put((row, lengths[:, None] + steps[:-1]), self.tokens(strings[:, :-1]))
        return suffix_states(backbone, prefix, embeddings, lengths[:, None] - 1 + steps)

    def _writer(self, backbone: PreTrainedModel) -> decode.NumberWriter:
        tables = self.given_success, self.value, self.next_state
        return decode.NumberWriter(backbone, self.tokens.weight, *tables, self.codec.num_tokens, self.forced)

    def _root(self, backbone: PreTrainedModel, prefix: PrefixCache, suffix: Tensor) -> tuple[decode.Level, Tensor]:
        """Where the numbers of one suffix (L,) part ways, given success; and the probability of failure."""
        embeddings = torch.cat([backbone.get_input_embeddings()(suffix), self.tokens(self.forced)])
        whole, hidden = extend(backbone, prefix, embeddings, reads=1 + len(self.forced))
        first, at_root = (hidden[[0, -1]] @ self.tokens.weight.t()).float()
        p_fail = first.masked_fill(~self.legal[0], float("-inf")).softmax(-1)[self.codec.failed].double()
        return decode.Level(whole, at_root[None], torch.tensor([self.start])), p_fail

    def _strings(self, z: Tensor, failed: Tensor) -> tuple[Tensor, Tensor]:
        """Token strings (M, num_tokens) and the grammar's state before each token (M, num_tokens)."""
        failure = [self.codec.failed] * self.codec.num_tokens
        rows = [
            failure if bad else self.codec.encode(2.0**value if self.codec.domain == "linear" else value)
            for value, bad in zip(z.tolist(), failed.tolist(), strict=True)
        ]
        strings = torch.tensor(rows)
        states = [torch.zeros(len(rows), dtype=torch.long)]
        for token in strings.t()[:-1]:
            states.append(self.next_state[states[-1], token])
        return strings, torch.stack(states, -1)

    def _values(self, strings: Tensor) -> Tensor:
        values = torch.tensor([self.codec.decode(s) for s in strings.tolist()], dtype=torch.float64)
        return values.log2() if self.codec.domain == "linear" else values


Head = GridHead | DigitHead


def _close_ways_to_what_is_no_slowdown(codec: NumberCodec, legal: Tensor) -> None:
    """A slowdown is positive: of `legal` (states, V), close the tokens at which negative numbers and zero part from it.

    A number written several times is closed in each copy.
    """
    length = codec.codec.num_tokens if isinstance(codec, Repeated) else codec.num_tokens
    for impossible in (-1.0, 0.0):
        state, together = 0, True
        for i, (token, other) in enumerate(zip(codec.encode(1.0), codec.encode(impossible), strict=True)):
            together = together or i % length == 0
            if together and token != other:
                legal[state, other] = together = False
            state = int(codec.next_state[state, token])


def _mean(x: Tensor) -> Tensor:
    """Of nothing: 0, with a gradient that is 0."""
    return x.mean() if x.numel() else x.sum()


def _stack(rows: list[tuple[Tensor, Tensor, Tensor]]) -> decode.Distribution:
    """Rows of different support, each sorted, padded with weightless copies of the last point."""
    widest = max(len(values) for values, _, _ in rows)
    support, weights = [], []
    for values, mass, _ in rows:
        values, order = values.sort()
        spare = widest - len(values)
        support.append(torch.cat([values, values[-1:].expand(spare)]))
        weights.append(F.pad(mass[order], (0, spare)))
    return decode.Distribution(torch.stack(support), torch.stack(weights), torch.stack([p for _, _, p in rows]))
