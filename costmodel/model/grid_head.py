"""One token on a grid of values: the numeric head of the shipped model, and its relatives that differ in the loss."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from costmodel.codecs.grids import LinearGrid, LogGrid, QuantileGrid
from costmodel.model import decode, losses
from costmodel.model.decoder import PrefixCache, encode_suffixes
from costmodel.model.losses import Parts, Targets
from costmodel.ops.numeric_rows import SOFT, Bins, numeric_rows

TARGETS = ("hl-gauss", "two-hot", "hard")  # what the cross-entropy is taken to
ROW_TERMS = ("hl-gauss", "hard", "raft")  # those that one pass over the logits gives, see ops.numeric_rows


class GridHead(nn.Module):
    """One categorical token over a grid of z, and a failed token.

    `loss` is a sum of terms: the cross-entropy to one of TARGETS (hl-gauss: a Gaussian of `sigma_bins` bins around the
    truth, two-hot: the two nearest middles, hard: its bin), which failures enter too; regression-aware terms (see
    `losses.raft_term`, over z_var and raw_var, the training values' variances in log2 and of 2^z); ranking terms.
    `learned`: the values of the tokens are learned as well (RAFT's learnable weights). It begins as the grid.
    """

    LOSSES = (*TARGETS, *losses.ONE_TOKEN_TERMS, *losses.RANK_TERMS)

    def __init__(
        self,
        hidden_size: int,
        grid: LinearGrid | QuantileGrid,
        *,
        loss: str = "hl-gauss+raft+pairwise",
        learned: bool = False,
        z_var: float = 1.0,
        raw_var: float = 1.0,
        sigma_bins: float = 2.0,
    ) -> None:
        super().__init__()
        self.terms = losses.parse(loss, self.LOSSES, one_of=TARGETS)
        self.grid, self.learned, self.z_var, self.raw_var, self.sigma_bins = grid, learned, z_var, raw_var, sigma_bins
        self.readout = nn.Linear(hidden_size, grid.bins + 1)
        centres = torch.as_tensor(grid.centres, dtype=torch.float32)
        self.centres: Tensor
        if learned:
            self.register_parameter("centres", nn.Parameter(centres))
        else:
            self.register_buffer("centres", centres, persistent=False)
        self.register_buffer("edges", torch.as_tensor(grid.edges, dtype=torch.float32), persistent=False)
        self.register_buffer("legal", torch.ones(1, grid.bins + 1, dtype=torch.bool), persistent=False)
        self.register_buffer("value", F.pad(centres, (0, 1), value=float("nan"))[None], persistent=False)
        self.edges: Tensor
        self.legal: Tensor
        self.value: Tensor  # (1, bins + 1): of each token, NaN of the failed one

    def spec(self) -> dict[str, Any]:
        """What `from_spec` needs, JSON-able."""
        grid = self.grid
        even = {"low": grid.low, "high": grid.high, "bins": grid.bins}
        place = {"edges": grid.edges.tolist()} if isinstance(grid, QuantileGrid) else even
        options = {name: getattr(self, name) for name in ("learned", "z_var", "raw_var", "sigma_bins")}
        return {"kind": "grid", **place, "loss": "+".join(self.terms), **options}

    @classmethod
    def from_spec(cls, hidden_size: int, spec: dict[str, Any]) -> GridHead:
        options = {name: value for name, value in spec.items() if name != "kind"}
        place = {name: options.pop(name) for name in ("low", "high", "bins", "edges") if name in options}
        return cls(hidden_size, QuantileGrid(**place) if "edges" in place else LogGrid(**place), **options)

    def loss(
        self, backbone: PreTrainedModel, prefix: PrefixCache, suffixes: Tensor, lengths: Tensor, targets: Targets
    ) -> tuple[Tensor, Parts]:
        return self.loss_of(encode_suffixes(backbone, prefix, suffixes, lengths), targets)

    def distribution(
        self, backbone: PreTrainedModel, prefix: PrefixCache, suffixes: Tensor, lengths: Tensor
    ) -> decode.Distribution:
        return self.distribution_of(encode_suffixes(backbone, prefix, suffixes, lengths))

    def loss_of(self, hidden: Tensor, targets: Targets) -> tuple[Tensor, Parts]:
        """hidden (M, D) -> the loss and its terms by name, "ce" whatever the target is."""
        z, ok, taught = targets.z.float(), ~targets.failed, targets.taught
        logits = self.readout(hidden)
        nll, expected = self._rows(logits, z, ok)
        if "two-hot" in self.terms:
            nll = -(self._two_hot(z, ok) * logits.log_softmax(-1)).sum(-1)
        elif not set(TARGETS) & set(self.terms):  # the regression alone says nothing of failures
            odds = logits[:, -1] - logits[:, :-1].logsumexp(-1)
            nll = F.binary_cross_entropy_with_logits(odds, targets.failed.float(), reduction="none")
        parts = {"ce": losses.mean(nll[~targets.rank_only])}
        for name in (name for name in self.terms if name in losses.ONE_TOKEN_TERMS):
            if name == "raft" and not self.learned:  # rows are chosen before the difference: 0 * NaN is NaN backward
                parts[name] = losses.mean((expected[taught] - z[taught]).square()) / self.z_var
                continue
            rows = logits[taught].float()
            p = rows.softmax(-1)[:, :-1] if name == "raft-unnormalized" else rows[:, :-1].softmax(-1)
            parts[name] = losses.raft_term(name, p, self.centres, z[taught], y_var=self.z_var, raw_var=self.raw_var)
        return losses.total(parts | losses.rank_terms(self.terms, expected[ok], z[ok]))

    def distribution_of(self, hidden: Tensor) -> decode.Distribution:
        """hidden (M, D) -> exact distributions."""
        logits = self.readout(hidden)
        if not self.learned:
            return decode.from_grid(logits, self.centres)
        centres, order = self.centres.sort()
        return decode.from_grid(torch.cat([logits[:, :-1][:, order], logits[:, -1:]], -1), centres)

    def _rows(self, logits: Tensor, z: Tensor, ok: Tensor) -> tuple[Tensor, Tensor]:
        """The cross-entropy (M,) and the expectation of z (M,) of every row."""
        bins = Bins(self.edges, self.sigma_bins * self.grid.width)
        inside = SOFT if "hard" not in self.terms else torch.bucketize(z.nan_to_num(), self.edges[1:-1], right=True)
        target = torch.where(ok, inside, self.grid.failed)
        state = torch.zeros_like(target)
        nll, expected = numeric_rows(logits, state, target, self.legal, self.value, y=z, bins=bins)
        if self.learned:  # the op takes its table of values as given
            expected = logits[:, :-1].float().softmax(-1) @ self.centres
        return nll, expected

    def _two_hot(self, z: Tensor, ok: Tensor) -> Tensor:
        """(M, bins + 1): the two middles around z, by nearness (Schrittwieser et al., 2020), or the failed token."""
        middles = torch.as_tensor(self.grid.centres, dtype=torch.float32, device=z.device)
        y = z.nan_to_num().clamp(middles[0], middles[-1])
        right = torch.bucketize(y, middles[1:-1]) + 1
        share = ((y - middles[right - 1]) / (middles[right] - middles[right - 1])).clamp(0, 1) * ok
        wanted = torch.zeros(len(z), self.grid.bins + 1, device=z.device)
        wanted.scatter_(1, right[:, None], share[:, None])
        wanted.scatter_(1, right[:, None] - 1, ((1 - share) * ok)[:, None])
        wanted[:, -1] = (~ok).float()
        return wanted
