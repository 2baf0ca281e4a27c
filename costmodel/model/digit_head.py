"""A number written digit by digit: the decoder as a numeric head.

After OmniPred (arXiv 2402.14547) and Decoding-based Regression (arXiv 2501.19383), taught by cross-entropy or by
regression-aware losses (RAFT; Lukasik et al., 2025).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from costmodel.codecs import codec_from
from costmodel.codecs.grammar import NumberCodec
from costmodel.codecs.repeated import Repeated
from costmodel.codecs.spread import half_unit, read, spread, written
from costmodel.model import decode, losses
from costmodel.model.decoder import PrefixCache, embedded, encode_suffixes, extend, suffix_states, tree_states
from costmodel.model.losses import Parts, Targets
from costmodel.model.trie import Trie
from costmodel.ops.numeric_loss import numeric_loss
from costmodel.records import UserError


class DigitHead(nn.Module):
    """The slowdown 2**z, or z itself, written as the codec's tokens by the same backbone, after the suffix, under its
    grammar.

    The number tokens have embeddings of their own, tied to the readout, so the text vocabulary stays as it is.

    `loss` is a sum of terms: "ce", of the whole strings, failures among them; RAFT, of the expectation over a grid of
    numbers whose strings are scored whole (see `losses.raft_term`; z_var and raw_var are the training values' variances
    in log2 and of 2^z); "pairwise" and "listwise", of the same expectation. Probabilities on the grid are divided by
    their sum, but in "raft-unnormalized", RAFT as it was published, where what is off the grid counts as z = 0.

    grid_values (log2 units) default to `codecs.spread` over z_low .. z_high, the least and the largest training value.
    A head that is taught without "ce" knows its grid alone, and its distribution is over that.
    """

    LOSSES = ("ce", *losses.RAFT_TERMS, *losses.RANK_TERMS)

    def __init__(
        self,
        hidden_size: int,
        codec: NumberCodec,
        *,
        loss: str = "ce",
        z_low: float | None = None,
        z_high: float | None = None,
        grid_values: Sequence[float] | None = None,
        z_var: float = 1.0,
        raw_var: float = 1.0,
    ) -> None:
        super().__init__()
        self.terms = losses.parse(loss, self.LOSSES)
        self.codec, self.z_var, self.raw_var = codec, z_var, raw_var
        self.tokens = nn.Embedding(len(codec.vocabulary), hidden_size)
        nn.init.normal_(self.tokens.weight, std=0.02)
        self._tabulate()
        if self.terms != ("ce",):
            if grid_values is None:
                if z_low is None or z_high is None:
                    raise UserError(f"got loss {loss!r} and no range, expected z_low and z_high, or grid_values")
                grid_values = spread(codec, z_low, z_high)
            self._plant(grid_values)

    def _tabulate(self) -> None:
        """The grammar's tables, as buffers."""
        codec = self.codec
        legal = torch.as_tensor(_positive(codec) if codec.domain == "linear" else codec.mask).clone()
        legal[:, [token for token in codec.specials.values() if token != codec.failed]] = False
        forced, state = [], 0
        while len(ways := [token for token in legal[state].nonzero()[:, 0].tolist() if token != codec.failed]) == 1:
            forced.append(ways[0])
            state = int(codec.next_state[state, ways[0]])
        self.start = state  # of the grammar, behind what every number begins with
        given_success = legal.clone()
        given_success[:, codec.failed] = False
        tables = {"forced": torch.tensor(forced, dtype=torch.long), "legal": legal, "given_success": given_success}
        tables |= {"value": torch.full(legal.shape, float("nan")), "next_state": torch.as_tensor(codec.next_state)}
        for name, table in tables.items():
            self.register_buffer(name, table, persistent=False)
        self.forced: Tensor
        self.legal: Tensor
        self.given_success: Tensor
        self.value: Tensor  # NaN: what a digit stands for depends on those around it
        self.next_state: Tensor

    def _plant(self, grid_values: Sequence[float]) -> None:
        """The grid: its values (G,) ascending, the trie of their strings, and the range that it covers."""
        codec = self.codec
        strings = {tuple(codec.encode(written(codec, z))) for z in grid_values}
        told = sorted((read(codec, string), string) for string in strings)
        first = codec.codec.num_tokens if isinstance(codec, Repeated) else codec.num_tokens
        self.trie = Trie([string[:first] for _, string in told], codec.next_state)
        self.grid_values = [z for z, _ in told]
        self.register_buffer("grid", torch.tensor(self.grid_values, dtype=torch.float32), persistent=False)
        self.grid: Tensor
        low, high = told[0][0], told[-1][0]
        self.covers = low - half_unit(codec, low, high), high + half_unit(codec, high, low)

    # ------------------------------------------------------------------------------------------------- as JSON

    def spec(self) -> dict[str, Any]:
        """What `from_spec` needs, JSON-able."""
        codec = {"codec": type(self.codec).__name__, "options": self.codec.options()}
        spec = {"kind": "digits", **codec, "loss": "+".join(self.terms), "z_var": self.z_var, "raw_var": self.raw_var}
        return spec | ({"grid_values": self.grid_values} if self.terms != ("ce",) else {})

    @classmethod
    def from_spec(cls, hidden_size: int, spec: dict[str, Any]) -> DigitHead:
        options = {name: value for name, value in spec.items() if name not in ("kind", "codec", "options")}
        if spec["kind"] == "p10":  # the first format: the keywords of its only codec
            return cls(hidden_size, codec_from("P10", options))
        return cls(hidden_size, codec_from(spec["codec"], spec["options"]), **options)

    # -------------------------------------------------------------------------------------------------- losses

    def loss(
        self, backbone: PreTrainedModel, prefix: PrefixCache, suffixes: Tensor, lengths: Tensor, targets: Targets
    ) -> tuple[Tensor, Parts]:
        """Rows marked rank_only enter the ranking terms alone."""
        if not set(losses.RANK_TERMS) & set(self.terms):
            taught = ~targets.rank_only
            suffixes, lengths = suffixes[taught], lengths[taught]
            targets = Targets(targets.z[taught], targets.failed[taught], targets.rank_only[taught])
        if not len(suffixes):
            return self.tokens.weight.sum() * 0, {}
        embeddings = embedded(backbone, suffixes)
        if "ce" not in self.terms:
            _, at_trie = self._tree(backbone, prefix, embeddings, lengths, None)
            return losses.total({"ce": self._failures(at_trie[:, 0], targets)} | self._grid_terms(at_trie, targets))
        strings, states = self._strings(targets.z, targets.failed)
        if self.terms == ("ce",):
            hidden, parts = self._hidden(backbone, prefix, embeddings, lengths, strings), {}
        else:
            hidden, at_trie = self._tree(backbone, prefix, embeddings, lengths, strings)
            parts = self._grid_terms(at_trie, targets)
        return losses.total({"ce": self._cross_entropy(hidden, strings, states, ~targets.rank_only)} | parts)

    def _cross_entropy(self, hidden: Tensor, strings: Tensor, states: Tensor, taught: Tensor) -> Tensor:
        """hidden (M, num_tokens, D); strings, states (M, num_tokens) -> the mean over the rows taught (M,)."""
        share = (taught / taught.sum().clamp_min(1)).float().repeat_interleave(strings.shape[1])
        none = torch.zeros_like(share)
        rows = states.flatten(), strings.flatten(), none
        hidden = hidden.flatten(0, 1)
        return numeric_loss(hidden, self.tokens.weight, None, *rows, self.legal, self.value, share, none)[0]

    def _failures(self, at_end: Tensor, targets: Targets) -> Tensor:
        """Cross-entropy of failure alone, since an expectation says nothing of it. at_end (M, D)."""
        first = (at_end @ self.tokens.weight.t()).float()
        odds = first[:, self.codec.failed] - first.masked_fill(~self.given_success[0], -torch.inf).logsumexp(-1)
        nll = F.binary_cross_entropy_with_logits(odds, targets.failed.float(), reduction="none")
        return losses.mean(nll[~targets.rank_only])

    def _grid_terms(self, at_trie: Tensor, targets: Targets) -> Parts:
        """Of the states (M, 1 + K, D): the regression-aware and the ranking terms."""
        ok, taught, z = ~targets.failed, targets.taught, targets.z.float()
        raft = [name for name in self.terms if name in losses.RAFT_TERMS]
        if raft and torch.is_grad_enabled():
            self._check_covered(targets.z[taught])
        log_p = self._grid_log_p(at_trie)
        p = log_p.softmax(-1)
        parts = {}
        for name in raft:
            of_rows = (log_p.exp() if name == "raft-unnormalized" else p)[taught]
            scale = {"y_var": self.z_var, "raw_var": self.raw_var}
            parts[name] = losses.raft_term(name, of_rows, self.grid, z[taught], **scale)
        return parts | losses.rank_terms(self.terms, p[ok] @ self.grid, z[ok])

    def _check_covered(self, z: Tensor) -> None:
        """An expectation over a grid cannot leave it, so it must hold every value (RAFT, Lemma 3)."""
        low, high = self.covers
        if len(outside := z[(z < low) | (z > high)]):
            raise UserError(
                f"got a target of {outside[0]:.6g} in log2 units, expected {low:.6g} to {high:.6g}, which the grid of "
                "the loss covers; give grid_values, or z_low and z_high, that hold it"
            )

    # ----------------------------------------------------------------------------------------------- inference

    def distribution(
        self, backbone: PreTrainedModel, prefix: PrefixCache, suffixes: Tensor, lengths: Tensor
    ) -> decode.Distribution:
        """By expanding the tree of strings (`decode.enumerate_strings`); what is left out is shared in proportion.

        Of a number written several times: over the strings in which all copies agree.
        """
        if "ce" not in self.terms:
            return self._grid_distribution(backbone, prefix, suffixes, lengths)
        writer, rows = self._writer(backbone), []
        copies = self.codec.times if isinstance(self.codec, Repeated) else 1
        for root, p_fail in self._roots(backbone, prefix, suffixes, lengths):
            strings, mass, own = decode.enumerate_strings(writer, root, length=self.codec.num_tokens // copies)
            if copies > 1:
                told = strings.shape[1]
                strings = strings.repeat(1, copies)
                agree = decode.log_probability(writer, root, strings)[:, told:].sum(-1)
                agree = (agree - agree.max()).exp()
                mass, own = mass * agree, own * agree
            rows.append((self._values(strings), mass / mass.sum(), own / mass.sum(), p_fail))
        return _stack(rows)

    def sample(
        self, backbone: PreTrainedModel, prefix: PrefixCache, suffixes: Tensor, lengths: Tensor, uniforms: Tensor, *,
        temperature: float = 1.0,
    ) -> Tensor:  # fmt: skip
        """uniforms (M, S) float64 in [0, 1) -> samples of z given success (M, S) float64.

        Equal uniforms give equal samples (`decode.stratified`). Each token is drawn at `temperature`. A number written
        several times is what most of its copies say.
        """
        writer, rows = self._writer(backbone), []
        for (root, _), u in zip(self._roots(backbone, prefix, suffixes, lengths), uniforms, strict=True):
            rows.append(self._values(decode.sample(writer, root, u, temperature=temperature)))
        return torch.stack(rows)

    def beam(
        self, backbone: PreTrainedModel, prefix: PrefixCache, suffixes: Tensor, lengths: Tensor, *, width: int = 8
    ) -> Tensor:
        """z (M,) of the most probable string that a beam of that width finds; 1 is greedy."""
        writer, rows = self._writer(backbone), self._roots(backbone, prefix, suffixes, lengths)
        return torch.cat([self._values(decode.beam(writer, root, width)[0][:1]) for root, _ in rows])

    def log_probability(
        self, backbone: PreTrainedModel, prefix: PrefixCache, suffixes: Tensor, lengths: Tensor, z: Tensor
    ) -> Tensor:
        """z (M, S) -> the log-probability (M, S) float64, given success, of each value's string, as `sample` draws."""
        writer, rows = self._writer(backbone), []
        for (root, _), values in zip(self._roots(backbone, prefix, suffixes, lengths), z, strict=True):
            values = values.to(root.logits.device)
            strings, _ = self._strings(values, torch.zeros_like(values, dtype=torch.bool))
            rows.append(decode.log_probability(writer, root, strings).sum(-1))
        return torch.stack(rows)

    def _grid_distribution(
        self, backbone: PreTrainedModel, prefix: PrefixCache, suffixes: Tensor, lengths: Tensor
    ) -> decode.Distribution:
        _, at_trie = self._tree(backbone, prefix, embedded(backbone, suffixes), lengths, None)
        log_p = self._grid_log_p(at_trie).double()
        p_fail = self._p_fail((at_trie[:, 0] @ self.tokens.weight.t()).float())
        support, weights = self.grid.double(), log_p.softmax(-1)
        if "raft-unnormalized" in self.terms:  # the sum that was taught: what is off the grid adds nothing
            weights = torch.cat([log_p.exp(), 1 - log_p.exp().sum(-1, keepdim=True).clamp_max(1)], -1)
            support, order = F.pad(support, (0, 1)).sort()
            weights = weights[:, order]
        return decode.Distribution(support.expand(len(log_p), -1), weights, p_fail, weights)

    # --------------------------------------------------------------------------------------- parts of the above

    def _hidden(
        self, backbone: PreTrainedModel, prefix: PrefixCache, embeddings: Tensor, lengths: Tensor, strings: Tensor
    ) -> Tensor:
        """The states (M, num_tokens, D) before each token of `strings` (M, num_tokens), written after each suffix."""
        row = torch.arange(len(strings), device=strings.device)[:, None]
        steps = torch.arange(strings.shape[1], device=strings.device)
        embeddings = F.pad(embeddings, (0, 0, 0, strings.shape[1] - 1))
        embeddings = embeddings.index_put((row, lengths[:, None] + steps[:-1]), self.tokens(strings[:, :-1]))
        return suffix_states(backbone, prefix, embeddings, lengths[:, None] - 1 + steps)

    def _tree(
        self, backbone: PreTrainedModel, prefix: PrefixCache, embeddings: Tensor, lengths: Tensor,
        strings: Tensor | None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """In one pass: the states (M, n, D) before each of the n tokens of each row's own string (none without
        strings), and (M, 1 + K, D) at the end of the suffix and at the nodes of the grid's trie."""
        trie, rows = self.trie, len(embeddings)
        chain = 0 if strings is None else strings.shape[1] - 1
        nodes = self.tokens(trie.tokens).expand(rows, -1, -1)
        if strings is not None:
            nodes = torch.cat([self.tokens(strings[:, :-1]), nodes.to(embeddings.dtype)], 1)
        parents = [*range(-1, chain - 1), *(chain + parent if parent >= 0 else -1 for parent in trie.parents)]
        if not parents:
            states = encode_suffixes(backbone, prefix, embeddings, lengths)[:, None]
        else:
            states = tree_states(backbone, prefix, embeddings, lengths, nodes, parents)
        return states[:, : 1 + chain], torch.cat([states[:, :1], states[:, 1 + chain :]], 1)

    def _grid_log_p(self, at_trie: Tensor) -> Tensor:
        """States (M, 1 + K, D) -> log-probability of each string of the grid (M, G), given success."""
        return self.trie.log_probabilities(at_trie @ self.tokens.weight.t(), self.given_success)

    def _writer(self, backbone: PreTrainedModel) -> decode.NumberWriter:
        if "ce" not in self.terms:
            raise UserError(f"got loss {'+'.join(self.terms)!r}, expected a head taught with ce to sample from; only "
                            "the expectation over its grid was taught, which its distribution has")  # fmt: skip
        tables = self.given_success, self.value, self.next_state
        return decode.NumberWriter(backbone, self.tokens.weight, *tables, self.codec.num_tokens, self.forced)

    def _roots(
        self, backbone: PreTrainedModel, prefix: PrefixCache, suffixes: Tensor, lengths: Tensor
    ) -> Iterator[tuple[decode.Level, Tensor]]:
        """Where the numbers of each suffix part ways, given success; and the probability of failure."""
        for suffix, length in zip(embedded(backbone, suffixes), lengths.tolist(), strict=True):
            embeddings = torch.cat([suffix[:length], self.tokens(self.forced)])
            whole, hidden = extend(backbone, prefix, embeddings, reads=1 + len(self.forced))
            first, at_root = (hidden[[0, -1]] @ self.tokens.weight.t()).float()
            start = torch.tensor([self.start], device=at_root.device)
            yield decode.Level(whole, at_root[None], start), self._p_fail(first[None])[0]

    def _p_fail(self, first: Tensor) -> Tensor:
        """Logits (M, V) of the first token -> (M,) float64."""
        return first.masked_fill(~self.legal[0], float("-inf")).softmax(-1)[:, self.codec.failed].double()

    def _strings(self, z: Tensor, failed: Tensor) -> tuple[Tensor, Tensor]:
        """Token strings (M, num_tokens) and the grammar's state before each token (M, num_tokens)."""
        failure = [self.codec.failed] * self.codec.num_tokens
        rows = [
            failure if bad else self.codec.encode(written(self.codec, value))
            for value, bad in zip(z.tolist(), failed.tolist(), strict=True)
        ]
        if self.codec.domain == "linear" and (nought := self.codec.encode(0.0)) in rows:
            raise UserError(
                f"got a slowdown of 2**{z[rows.index(nought)]:.6g}, which {type(self.codec).__name__} writes as 0, "
                "expected a larger one; give the codec a lower exponent"
            )
        strings = torch.tensor(rows, device=z.device)
        states = [torch.zeros(len(rows), dtype=torch.long, device=z.device)]
        for token in strings.t()[:-1]:
            states.append(self.next_state[states[-1], token])
        return strings, torch.stack(states, -1)

    def _values(self, strings: Tensor) -> Tensor:
        """z (N,) float64 of strings (N, num_tokens); equal ones are decoded once."""
        distinct, which = strings.unique(dim=0, return_inverse=True)
        values = [read(self.codec, string) for string in distinct.tolist()]
        return torch.tensor(values, dtype=torch.float64, device=strings.device)[which]


def _positive(codec: NumberCodec) -> np.ndarray:
    """A codec's mask (states, V) without the tokens at which negative numbers and zero part from slowdowns, which are
    positive. A number written several times has them closed in each copy."""
    if isinstance(codec, Repeated):
        once = _positive(codec.codec)
        return np.concatenate([*[once[:-1]] * codec.times, once[-1:]])
    mask, after = codec.mask.copy(), codec.next_state
    strings = np.zeros(len(mask), dtype=object)  # from each state: a state's number is below those behind it
    strings[-1] = 1
    for state in reversed(range(len(mask) - 1)):
        strings[state] = strings[after[state][mask[state]]].sum()
    state = 0
    for token, other in zip(codec.encode(1.0), codec.encode(-1.0), strict=True):
        if token != other:
            mask[state, other] = False
            break
        state = after[state, token]
    state = 0
    for token in codec.encode(0.0):
        if strings[after[state, token]] == 1:  # zero alone goes on from here
            mask[state, token] = False
            break
        state = after[state, token]
    return mask


def _stack(rows: list[tuple[Tensor, Tensor, Tensor, Tensor]]) -> decode.Distribution:
    """Rows of different support, each sorted, padded with weightless copies of the last point."""
    widest = max(len(values) for values, *_ in rows)
    support, weights, owns = [], [], []
    for values, mass, own, _ in rows:
        values, order = values.sort()
        spare = widest - len(values)
        support.append(torch.cat([values, values[-1:].expand(spare)]))
        weights.append(F.pad(mass[order], (0, spare)))
        owns.append(F.pad(own[order], (0, spare)))
    p_fail = torch.stack([p for *_, p in rows])
    return decode.Distribution(torch.stack(support), torch.stack(weights), p_fail, torch.stack(owns))
