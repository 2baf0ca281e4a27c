"""Numbers that are not tokens: one value with a common error, or a mixture of Gaussians.

What the literature calls predictive heads (RAFT, Lukasik et al., 2025, table 4) differ in what they read the value
from; mixture density (Bishop, 1994) is the rival of Decoding-based Regression (arXiv 2501.19383).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from costmodel.model import decode, losses
from costmodel.model.decoder import PrefixCache, all_states, encode_suffixes
from costmodel.model.losses import Parts, Targets
from costmodel.records import UserError

GAUSSIAN_POINTS = 64  # equally likely values that stand for a Gaussian
NUMBER_TOKEN = 2  # <sep>: the text token whose logit is the value, in "final-logit"
MLP_WIDTH = 64
SIGMA_FLOOR = 0.01  # of a component, in standard deviations of z: without a floor one component falls onto one row


class ScalarHead(nn.Module):
    """One value, z_mean + z_std * what is read off the states of a suffix, with one standard deviation for all.

    read: "last", a linear map of the last state; "pooled-mean", "-min" or "-max", of the states of all its tokens;
    "final-logit", the logit of one text token; "logits-mlp", a small network on all of them; "logits-projection", the
    expectation of a learned value under their softmax. Loss terms: "squared", "absolute", and ranking ones; the
    deviation and the probability of failure are trained beside them and teach the states nothing of the value.
    """

    READS = ("last", "pooled-mean", "pooled-min", "pooled-max", "final-logit", "logits-mlp", "logits-projection")
    LOSSES = ("squared", "absolute", *losses.RANK_TERMS)

    def __init__(
        self,
        hidden_size: int,
        *,
        read: str = "last",
        loss: str = "squared+pairwise",
        vocab_size: int = 0,
        z_mean: float = 0.0,
        z_std: float = 1.0,
    ) -> None:
        super().__init__()
        if read not in self.READS:
            raise UserError(f"got read={read!r}, expected one of {', '.join(self.READS)}")
        self.terms = losses.parse(loss, self.LOSSES, one_of=("squared", "absolute"))
        self.read, self.vocab_size, self.z_mean, self.z_std = read, vocab_size, z_mean, z_std
        self.failure = nn.Linear(hidden_size, 1)
        self.log_sigma = nn.Parameter(torch.zeros(()))
        if read == "logits-mlp":
            self.value: nn.Module = nn.Sequential(nn.Linear(vocab_size, MLP_WIDTH), nn.GELU(), nn.Linear(MLP_WIDTH, 1))
        elif read == "logits-projection":
            self.value = nn.Linear(vocab_size, 1, bias=False)
            nn.init.normal_(self.value.weight)  # the values, in deviations of z, of which an average is taken
        elif read != "final-logit":
            self.value = nn.Linear(hidden_size, 1)

    def spec(self) -> dict[str, Any]:
        options = {name: getattr(self, name) for name in ("read", "vocab_size", "z_mean", "z_std")}
        return {"kind": "scalar", "loss": "+".join(self.terms), **options}

    @classmethod
    def from_spec(cls, hidden_size: int, spec: dict[str, Any]) -> ScalarHead:
        return cls(hidden_size, **{name: value for name, value in spec.items() if name != "kind"})

    def loss(
        self, backbone: PreTrainedModel, prefix: PrefixCache, suffixes: Tensor, lengths: Tensor, targets: Targets
    ) -> tuple[Tensor, Parts]:
        z, odds = self._read(backbone, prefix, suffixes, lengths)
        ok, taught = ~targets.failed, targets.taught
        off = (z[taught] - targets.z[taught].float()) / self.z_std
        parts: Parts = {}
        if "squared" in self.terms:
            parts["squared"] = losses.mean(off.square())
        if "absolute" in self.terms:
            parts["absolute"] = losses.mean(off.abs())
        nll = self.log_sigma + off.detach().square() / 2 * (-2 * self.log_sigma).exp()
        parts["sigma"] = losses.mean(nll) if len(off) else self.log_sigma * 0
        parts["failed"] = _failure(odds, targets)
        return losses.total(parts | losses.rank_terms(self.terms, z[ok], targets.z[ok].float()))

    def distribution(
        self, backbone: PreTrainedModel, prefix: PrefixCache, suffixes: Tensor, lengths: Tensor
    ) -> decode.Distribution:
        z, odds = self._read(backbone, prefix, suffixes, lengths)
        support = z.double()[:, None] + self.z_std * self.log_sigma.double().exp() * _gaussian_points(z.device)
        return decode.Distribution(support, torch.full_like(support, 1 / GAUSSIAN_POINTS), odds.double().sigmoid())

    def _read(
        self, backbone: PreTrainedModel, prefix: PrefixCache, suffixes: Tensor, lengths: Tensor
    ) -> tuple[Tensor, Tensor]:
        """z (M,) and the log-odds of failure (M,)."""
        if self.read.startswith("pooled"):
            states = all_states(backbone, prefix, suffixes)
            real = torch.arange(states.shape[1], device=states.device) < lengths[:, None].to(states.device)
            last = states[torch.arange(len(states)), lengths - 1]
            read = self.value(_pooled(states, real, self.read.removeprefix("pooled-")))[:, 0]
        else:
            last = encode_suffixes(backbone, prefix, suffixes, lengths)
            if self.read == "last":
                read = self.value(last)[:, 0]
            else:
                output = backbone.get_output_embeddings()
                logits = output(last).float()
                if self.read == "final-logit":
                    read = logits[:, NUMBER_TOKEN]
                else:
                    read = self.value(logits.softmax(-1) if self.read == "logits-projection" else logits)[:, 0]
        return self.z_mean + self.z_std * read.float(), self.failure(last)[:, 0].float()


class MixtureHead(nn.Module):
    """A mixture of Gaussians over z. Loss terms: "nll", "raft" (squared error of its mean), and ranking ones."""

    LOSSES = ("nll", "raft", *losses.RANK_TERMS)

    def __init__(
        self,
        hidden_size: int,
        *,
        components: int = 8,
        loss: str = "nll+pairwise",
        z_mean: float = 0.0,
        z_std: float = 1.0,
    ) -> None:
        super().__init__()
        self.terms = losses.parse(loss, self.LOSSES)
        self.components, self.z_mean, self.z_std = components, z_mean, z_std
        self.readout = nn.Linear(hidden_size, 3 * components + 1)
        with torch.no_grad():  # components begin apart, or they learn the same
            self.readout.bias[components : 2 * components] = torch.linspace(-1.5, 1.5, components)

    def spec(self) -> dict[str, Any]:
        options = {name: getattr(self, name) for name in ("components", "z_mean", "z_std")}
        return {"kind": "mixture", "loss": "+".join(self.terms), **options}

    @classmethod
    def from_spec(cls, hidden_size: int, spec: dict[str, Any]) -> MixtureHead:
        return cls(hidden_size, **{name: value for name, value in spec.items() if name != "kind"})

    def loss(
        self, backbone: PreTrainedModel, prefix: PrefixCache, suffixes: Tensor, lengths: Tensor, targets: Targets
    ) -> tuple[Tensor, Parts]:
        log_share, middle, sigma, odds = self._read(encode_suffixes(backbone, prefix, suffixes, lengths))
        ok, taught = ~targets.failed, targets.taught
        expected = (log_share.exp() * middle).sum(-1)
        z = (targets.z.float() - self.z_mean) / self.z_std
        parts: Parts = {"failed": _failure(odds, targets)}
        if "nll" in self.terms:
            off = (z[taught, None] - middle[taught]) / sigma[taught]
            density = log_share[taught] - sigma[taught].log() - off.square() / 2 - math.log(2 * math.pi) / 2
            parts["nll"] = losses.mean(-density.logsumexp(-1))
        if "raft" in self.terms:
            parts["raft"] = losses.mean((expected[taught] - z[taught]).square())
        ranked = self.z_mean + self.z_std * expected[ok]
        return losses.total(parts | losses.rank_terms(self.terms, ranked, targets.z[ok].float()))

    def distribution(
        self, backbone: PreTrainedModel, prefix: PrefixCache, suffixes: Tensor, lengths: Tensor
    ) -> decode.Distribution:
        """Each component as GAUSSIAN_POINTS equally likely values."""
        log_share, middle, sigma, odds = self._read(encode_suffixes(backbone, prefix, suffixes, lengths))
        points = middle.double()[..., None] + sigma.double()[..., None] * _gaussian_points(middle.device)
        weights = (log_share.double().exp() / GAUSSIAN_POINTS)[..., None].expand_as(points)
        support, order = (self.z_mean + self.z_std * points.flatten(1)).sort(-1)
        return decode.Distribution(support, weights.flatten(1).gather(1, order), odds.double().sigmoid())

    def _read(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Log shares, middles and deviations (M, components), in standard deviations of z, and the odds of failure."""
        out = self.readout(hidden).float()
        share, middle, spread = out[:, :-1].chunk(3, -1)
        return share.log_softmax(-1), middle, SIGMA_FLOOR + F.softplus(spread), out[:, -1]


def _pooled(states: Tensor, real: Tensor, how: str) -> Tensor:
    """states (M, L, D) over the real tokens (M, L) -> (M, D)."""
    if how == "mean":
        return (states * real[..., None]).sum(1) / real.sum(1, keepdim=True)
    if how == "min":
        return states.masked_fill(~real[..., None], float("inf")).amin(1)
    return states.masked_fill(~real[..., None], float("-inf")).amax(1)


def _failure(odds: Tensor, targets: Targets) -> Tensor:
    told = ~targets.rank_only
    return losses.mean(F.binary_cross_entropy_with_logits(odds[told], targets.failed[told].float(), reduction="none"))


def _gaussian_points(device: torch.device) -> Tensor:
    middles = (torch.arange(GAUSSIAN_POINTS, dtype=torch.float64, device=device) + 0.5) / GAUSSIAN_POINTS
    return torch.special.ndtri(middles)
