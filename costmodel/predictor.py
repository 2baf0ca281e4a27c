"""The network as a CostModel: text in, a distribution over latency out, one prefix encoded once for all its configs.

model = NeuralCostModel.from_pretrained()
predictions = model.predict(workload.variants(problem, device), device)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from costmodel.familiarity import Familiarity
from costmodel.features import schema_features
from costmodel.gaussian import MaternProcess
from costmodel.model import checkpoint, decode
from costmodel.model.decoder import PrefixCache, encode_prefix, pad
from costmodel.records import Device, Measurement, Prediction, UserError, Variant
from costmodel.serialize import prompt, reference_us
from costmodel.tokens import TextTokenizer

SHIPPED = Path(__file__).with_name("pretrained")
PREFIX_BUDGET = 4096  # tokens
BATCH = 512  # suffixes in one pass

Space = tuple[str, Any, str]  # kernel identity, problem, device identity


class NeuralCostModel:
    """An ensemble of decoder-only networks of different seeds, averaged as a mixture.

    `update` learns a scale and a residual per space on top of the network and never changes its weights.
    """

    def __init__(
        self, members: Sequence[checkpoint.Member], tokenizer: TextTokenizer, details: dict[str, Any] | None = None
    ) -> None:
        self.members, self.tokenizer, self.details = list(members), tokenizer, details or {}
        known = self.details.get("familiarity")
        self.familiarity = Familiarity.from_json(known) if known else None
        self._measured: dict[Space, dict[Variant, float]] = {}
        self._sources: dict[tuple[int, tuple[int, ...]], PrefixCache] = {}

    @classmethod
    def from_pretrained(cls, folder: str | Path | None = None) -> NeuralCostModel:
        """Load a model folder; the shipped one if left out."""
        return cls(*checkpoint.load(SHIPPED if folder is None else folder))

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config.json, model.safetensors and tokenizer.json."""
        checkpoint.save(folder, self.members, self.tokenizer, details=self.details)

    def predict(self, variants: Sequence[Variant], device: Device) -> list[Prediction]:
        """Same length and order as `variants`; those of one kernel and problem share one encoding of their prefix."""
        groups: dict[tuple[str, Any], list[int]] = {}
        for i, variant in enumerate(variants):
            groups.setdefault((variant.kernel.identity, variant.problem), []).append(i)
        answers: dict[int, Prediction] = {}
        for indices in groups.values():
            for start in range(0, len(indices), BATCH):
                batch = indices[start : start + BATCH]
                predictions = self._predict_group([variants[i] for i in batch], device)
                answers.update(zip(batch, predictions, strict=True))
        return [answers[i] for i in range(len(variants))]

    def predict_frame(self, variants: Sequence[Variant], device: Device) -> pd.DataFrame:
        """Predictions as a table: one row a variant, parameters and latency quantiles as columns."""
        rows = [
            {
                "kernel": v.kernel.name,
                "problem": str(v.problem),
                **v.config.as_dict(),
                "median_us": p.median_us,
                "q05_us": p.quantile_us(0.05),
                "q95_us": p.quantile_us(0.95),
                "p_fail": p.p_fail,
                "trust": p.trust,
            }
            for v, p in zip(variants, self.predict(variants, device), strict=True)
        ]
        return pd.DataFrame(rows)

    def rank(self, variants: Sequence[Variant], device: Device) -> list[Variant]:
        """Fastest predicted first; those that will probably fail last."""
        predictions = self.predict(variants, device)
        order = sorted(range(len(variants)), key=lambda i: (predictions[i].p_fail > 0.5, predictions[i].median_us))
        return [variants[i] for i in order]

    def update(self, measurements: Sequence[Measurement]) -> None:
        """Keep the successes; predictions for their kernels are shifted by what the network got wrong on them."""
        for m in measurements:
            if m.status == "ok":
                space = (m.variant.kernel.identity, m.variant.problem, m.device.identity)
                self._measured.setdefault(space, {})[m.variant] = m.latency_us

    # -- one space ------------------------------------------------------------------------------------------------

    def _predict_group(self, variants: Sequence[Variant], device: Device) -> list[Prediction]:
        kernel, problem = variants[0].kernel, variants[0].problem
        reference = reference_us(variants[0], device)
        if reference <= 0:
            raise UserError(f"got problem {problem} with no flops and no bytes, expected at least one; state them")
        told = self._network(variants, device)
        middle = told.quantile(0.5).numpy()
        shift = self._shift(variants, device)
        trust, reason = (True, "") if self.familiarity is None else self.familiarity.judge(kernel, problem, device)
        spread = self.details.get("spread", {}).get("trusted" if trust else "untrusted", 1.0)
        z = middle[:, None] + (told.support.numpy() - middle[:, None]) * spread + shift[:, None]
        predictions = [
            Prediction(tuple(us), tuple(weights), p_fail, trust=trust, reason=reason)
            for us, weights, p_fail in zip(
                (reference * 2.0**z).tolist(), told.weights.tolist(), told.p_fail.tolist(), strict=True
            )
        ]
        return predictions

    @torch.inference_mode()
    def _network(self, variants: Sequence[Variant], device: Device) -> decode.Distribution:
        """The members' mixture over log2 slowdown."""
        prompts = [prompt(variant, device) for variant in variants]
        prefix = self.tokenizer.encode_prefix(prompts[0], PREFIX_BUDGET).ids
        suffixes = [self.tokenizer.encode_suffix(p) for p in prompts]
        told = []
        for number, member in enumerate(self.members):
            cache = self._encode(number, member, prefix)
            told.append(member.head.distribution(member.backbone, cache, *pad(suffixes)))
        return decode.mixture(told)

    def _encode(self, number: int, member: checkpoint.Member, prefix: tuple[int, ...]) -> PrefixCache:
        """The source is encoded once and serves every device and problem; what follows it is short."""
        end = prefix.index(self.tokenizer.sep_id)
        key = (number, prefix[:end])
        if key not in self._sources:
            if len(self._sources) >= 4 * len(self.members):
                self._sources.pop(next(iter(self._sources)))
            self._sources[key] = encode_prefix(member.backbone, torch.tensor(prefix[:end]))
        return encode_prefix(member.backbone, torch.tensor(prefix[end:]), after=self._sources[key])

    def _shift(self, variants: Sequence[Variant], device: Device) -> np.ndarray:
        """(M,) in log2: a Matern process on the residuals of this space, or else the kernel's mean residual, shrunk."""
        kernel, problem = variants[0].kernel, variants[0].problem
        here = self._measured.get((kernel.identity, problem, device.identity))
        if here:
            residual = self._residuals(here, device)
            if len(here) < 3 or not kernel.schema:
                return np.full(len(variants), residual.mean() * len(here) / (len(here) + 0.5))
            features = schema_features([*variants, *here])
            process = MaternProcess()
            process.fit(features[len(variants) :], residual - residual.mean())
            return residual.mean() + process.predict(features[: len(variants)])[0]
        elsewhere = [
            self._residuals(measured, device).mean()
            for (identity, _, name), measured in self._measured.items()
            if identity == kernel.identity and name == device.identity
        ]
        return np.full(len(variants), float(np.sum(elsewhere)) / (len(elsewhere) + 0.5))

    def _residuals(self, measured: dict[Variant, float], device: Device) -> np.ndarray:
        """Measured minus predicted log2 slowdown of the network alone."""
        variants = list(measured)
        told = self._network(variants, device).quantile(0.5).numpy()
        true = [math.log2(us / reference_us(v, device)) for v, us in measured.items()]
        return np.array(true) - told
