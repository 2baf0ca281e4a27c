"""What a numeric head is trained on, and the terms that its loss is a sum of.

A loss is named by its terms: "hl-gauss+raft+pairwise". Which terms a head knows is the head's business (`parse`); what
they compute from a distribution over the values of a grid, or from a point, stands here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from costmodel.records import UserError

RANK_WEIGHT = 0.5  # of either ranking term
RANK_TEMPERATURE = 0.25  # log2 units
RANK_MARGIN = 0.02  # pairs closer than this are ties
RANK_BEST_SHARE, RANK_BEST_WEIGHT = 0.2, 3.0
RANK_TERMS = ("pairwise", "listwise")

Parts = dict[str, Tensor]  # the terms of a loss, detached, for the log


@dataclass(frozen=True, slots=True, eq=False)
class Targets:
    """What M suffixes of one prefix came to: z (M,) in log2 units (ignored where failed), failed (M,) bool.

    rank_only (M,) bool marks rows gathered by a search, a biased sample: they teach the order and nothing else.
    """

    z: Tensor
    failed: Tensor
    rank_only: Tensor

    @property
    def taught(self) -> Tensor:
        """Rows whose level is taught: that ran, and were not gathered by a search (M,) bool."""
        return ~self.failed & ~self.rank_only


def parse(loss: str, known: Sequence[str], *, one_of: Sequence[str] = ()) -> tuple[str, ...]:
    """The terms of a loss, "ce+raft" -> ("ce", "raft"). At most one of `one_of`; UserError names what is known."""
    terms = tuple(term.strip() for term in loss.split("+"))
    if unknown := [term for term in terms if term not in known]:
        raise UserError(f"got loss term {unknown[0]!r} in {loss!r}, expected terms of {', '.join(known)} joined by +")
    if len(set(terms)) < len(terms) or sum(term in one_of for term in terms) > 1:
        only = f" and at most one of {', '.join(one_of)}" if one_of else ""
        raise UserError(f"got loss {loss!r}, expected each term once{only}")
    return terms


def mean(x: Tensor) -> Tensor:
    """Of nothing: 0, with a gradient that is 0."""
    return x.mean() if x.numel() else x.sum()


def total(terms: Parts) -> tuple[Tensor, Parts]:
    """The sum of the terms, ranking ones at RANK_WEIGHT, and the terms without their graph."""
    weighted = [RANK_WEIGHT * term if name in RANK_TERMS else term for name, term in terms.items()]
    return torch.stack(weighted).sum(), {name: term.detach() for name, term in terms.items()}


def rank_terms(names: Sequence[str], predicted: Tensor, z: Tensor) -> Parts:
    """The ranking terms among `names`, of the predictions (N,) of the rows that ran."""
    losses = {"pairwise": rank_loss, "listwise": listwise_loss}
    return {name: losses[name](predicted, z) for name in names if name in losses}


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


def listwise_loss(predicted: Tensor, z: Tensor) -> Tensor:
    """ListNet (Cao et al., 2007) on -z (M,): cross-entropy between the chances, by truth and by prediction, to be the
    fastest of the group, less its least value, so that 0 is a perfect order."""
    if len(z) < 2:
        return predicted.sum() * 0
    wanted = (-z / RANK_TEMPERATURE).log_softmax(0)
    return (wanted.exp() * (wanted - (-predicted / RANK_TEMPERATURE).log_softmax(0))).sum()


RAFT_TERMS = ("raft", "raft-raw", "raft-relative", "raft-unnormalized")
ONE_TOKEN_TERMS = (*RAFT_TERMS, "sampled")  # those of a grid whose values are a token each


def raft_term(name: str, p: Tensor, values: Tensor, y: Tensor, *, y_var: float, raw_var: float) -> Tensor:
    """A regression-aware term of a grid's probabilities p (N, B), given success, the values (B,) of its tokens in log2
    units, and the truth y (N,); after RAFT (Lukasik et al., 2025).

    raft: (E z - y)^2 / y_var. raft-raw: (E 2^z - 2^y)^2 / raw_var. raft-relative: (E 2^z / 2^y - 1)^2.
    sampled: E (z - y)^2 / y_var, what samples err by on average; it wants one token (their Lemma 4).
    raft-unnormalized is raft over p whose rows sum to less than 1, the rest being the failed token's.
    """
    if name in ("raft", "raft-unnormalized"):
        return mean((p @ values - y).square()) / y_var
    if name == "raft-raw":
        return mean((p @ values.exp2() - y.exp2()).square()) / raw_var
    if name == "raft-relative":
        # 2^(z - y) as such, so that a large y loses no digits
        return mean(((p * (values - y[:, None]).exp2()).sum(-1) - 1).square())
    return mean((p * (values - y[:, None]).square()).sum(-1)) / y_var
