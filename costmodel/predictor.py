"""The network as a CostModel: text in, a distribution over latency out, one prefix encoded once for all its configs.

model = NeuralCostModel.from_pretrained()
predictions = model.predict(workload.variants(problem, device), device)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.stats
import torch

from costmodel import conformal, dataset, uncertainty
from costmodel.correction import Correction
from costmodel.familiarity import Familiarity
from costmodel.features import schema_features
from costmodel.model import checkpoint, decode
from costmodel.model.decoder import PrefixCache, encode_prefix, pad
from costmodel.records import Config, Device, Measurement, Prediction, UserError, Variant
from costmodel.serialize import device_text, prompt, reference_us, vendor_only
from costmodel.tokens import Encoded, TextTokenizer

MEASURED = "measured"  # the folder inside a model's that holds what it was told
TRUSTED_FROM = 8  # measurements of a space after which its predictions are trusted, whatever training saw
SHIPPED = Path(__file__).with_name("pretrained")
PREFIX_BUDGET = 4096  # tokens
BATCH = 512  # suffixes in one pass
SENSITIVITY_BASES = 32  # configs around which the network's sensitivity to each parameter is taken
# On a device without training data an operator's estimate is corrected by this share of what the network says: leaving
# one GPU of five out, more made every class of operator but bmm worse (docs/lab-notes.md).
OPERATOR_TRANSFER = 0.25
# Of the errors that one network makes on two texts of one kernel. Assumed, not measured yet.
EDIT_CORRELATION = 0.95
COPULA_POINTS = 32  # a side of the grid that stands for it


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
        self._told: dict[tuple[Variant, Device], Measurement] = {}
        self._measured: dict[dataset.SpaceKey, dict[Variant, float]] = {}
        self._corrections: dict[dataset.SpaceKey, tuple[float, Correction | None]] = {}
        self._sources: dict[tuple[int, tuple[int, ...]], PrefixCache] = {}

    @classmethod
    def from_pretrained(cls, folder: str | Path | None = None) -> NeuralCostModel:
        """Load a model folder; the shipped one if left out."""
        folder = SHIPPED if folder is None else Path(folder)
        model = cls(*checkpoint.load(folder))
        if (folder / MEASURED).is_dir():
            model.update(dataset.read_parquet(folder / MEASURED))
        return model

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config.json, model.safetensors and tokenizer.json, and as a dataset what `update` was told."""
        checkpoint.save(folder, self.members, self.tokenizer, details=self.details)
        if self._told:
            dataset.write_parquet(self._told.values(), Path(folder) / MEASURED)

    def predict(self, variants: Sequence[Variant], device: Device) -> list[Prediction]:
        """Same length and order as `variants`; those of one space share one encoding of their prefix."""
        answers = dict(self.stream(variants, device))
        return [answers[i] for i in range(len(variants))]

    def stream(self, variants: Sequence[Variant], device: Device) -> Iterator[tuple[int, Prediction]]:
        """Each variant's place and prediction, space by space. A prediction takes 16 kB: of a large space one looks at
        them as they come and keeps few."""
        spaces: dict[dataset.SpaceKey, list[int]] = {}
        for i, variant in enumerate(variants):
            spaces.setdefault(dataset.space_of(variant, device), []).append(i)
        for indices in spaces.values():
            for start in range(0, len(indices), BATCH):
                batch = indices[start : start + BATCH]
                yield from zip(batch, self._predict_group([variants[i] for i in batch], device), strict=True)

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
        keys = {i: (p.p_fail > 0.5, p.median_us) for i, p in self.stream(variants, device)}
        return [variants[i] for i in sorted(range(len(variants)), key=keys.__getitem__)]

    def slowdowns(self, pairs: Sequence[tuple[Variant, Variant]], device: Device) -> np.ndarray:
        """(N, K): for each pair, equally likely values of log2(latency of the second / latency of the first).

        Both are asked of the same member and the same wording, and within those their errors are taken to be correlated
        by EDIT_CORRELATION (a Gaussian copula), so that what a network gets wrong about both cancels. Measurements
        have no say: one that knows the first and not the second would pass its error off as a slow-down.
        """
        wordings = 1 if self._knows(device) else 2
        rows = np.zeros((len(pairs), wordings * len(self.members) * COPULA_POINTS**2))
        for row, (before, after) in zip(rows, pairs, strict=True):
            if prompt(before, device) != prompt(after, device):
                first, second = (self._by_member([variant], device) for variant in (before, after))
                reference = [self._log2_references([variant], device)[0][0] for variant in (before, after)]
                drawn = [_difference(old, new) for old, new in zip(first, second, strict=True)]
                row[:] = reference[1] - reference[0] + np.concatenate(drawn)
        return rows

    def update(self, measurements: Sequence[Measurement]) -> None:
        """Keep the successes; predictions for their kernels are shifted by what the network got wrong on them."""
        for m in measurements:
            if m.status == "ok":
                self._told[m.variant, m.device] = m
                self._measured.setdefault(dataset.space_key(m), {})[m.variant] = m.latency_us
        self._corrections.clear()

    def calibrate(
        self, measurements: Sequence[Measurement], *, alpha: float = 0.1, device: Device | None = None
    ) -> pd.DataFrame:
        """Stretch all predictions about their medians so that intervals of 1 - alpha hold their share of new spaces.

        measurements: of spaces that the model neither was trained on nor told. Spaces whose predictions are trusted and
        the others are calibrated apart (Mondrian; Vovk et al. 2005), each by the "stretch" of `conformal`; with a
        device, a space weighs by `conformal.device_weight` of its own. Where only the order is known, it is the
        interval about the space's best scale. -> one row a kind: spaces, rows, covered before, factor; an infinite
        factor (too few spaces) is not applied, and predictions of that kind say so in their reason.
        """
        rows = [m for m in measurements if m.status == "ok"]
        if told := sum((m.variant, m.device) in self._told for m in rows):
            raise UserError(f"got {told} measurements that `update` was told, expected others: calibrate on those")
        before, bare = self.details, {name: value for name, value in self.details.items() if name != "spread"}
        self.details = bare
        try:
            predictions = uncertainty.predict_all(self, rows)
        finally:
            self.details = before
        trusted = np.array([p.trust for p in predictions], dtype=bool)
        kinds = {"trusted": trusted, "untrusted": ~trusted}
        found = {
            name: _calibrated(rows, predictions, np.flatnonzero(kind), alpha, device) for name, kind in kinds.items()
        }
        if not any(np.isfinite(row["factor"]) for row in found.values()):
            spaces = {name: row["spaces"] for name, row in found.items()}
            raise UserError(
                f"got {spaces['trusted']} trusted and {spaces['untrusted']} untrusted spaces, expected at least "
                f"{conformal.least_spaces(alpha)} of a kind{' near the device' if device else ''} for alpha={alpha:g}"
            )
        factors = {name: row["factor"] for name, row in found.items()}
        self.details = {**bare, "spread": {name: f if np.isfinite(f) else None for name, f in factors.items()}}
        return pd.DataFrame(found).T.rename_axis("kind").reset_index()

    # -- one space ------------------------------------------------------------------------------------------------

    def _predict_group(self, variants: Sequence[Variant], device: Device) -> list[Prediction]:
        kernel, problem = variants[0].kernel, variants[0].problem
        told = self._network(variants, device)
        middle = told.quantile(0.5).numpy()
        log2_reference, scale_known = self._log2_references(variants, device)
        residual = self._residual(variants, middle, device)
        trust, reason = (True, "") if self.familiarity is None else self.familiarity.judge(kernel, problem, device)
        measured = len(self._measured.get(dataset.space_of(variants[0], device), ()))
        if measured:
            trust = trust or measured >= TRUSTED_FROM
            reason = f"{reason}; corrected by {measured} measured here"
        if not scale_known:
            reason = f"{reason}; only the order means something until one config of this problem is measured"
        spread = self.details.get("spread", {}).get("trusted" if trust else "untrusted", 1.0)
        if spread is None:
            reason, spread = f"{reason}; its interval is not calibrated", 1.0
        z = middle[:, None] + (told.support.numpy() - middle[:, None]) * spread
        z += (log2_reference + residual)[:, None]
        return [
            Prediction(tuple(us), tuple(weights), p_fail, scale_known=scale_known, trust=trust, reason=reason)
            for us, weights, p_fail in zip((2.0**z).tolist(), told.weights.tolist(), told.p_fail.tolist(), strict=True)
        ]

    def _network(self, variants: Sequence[Variant], device: Device) -> decode.Distribution:
        """The members' mixture over log2 slowdown; what it says of operators on a device that training never saw is
        drawn in."""
        mixed = decode.mixture(self._by_member(variants, device))
        if variants[0].kernel.language == "operator" and not self._knows(device):
            drawn_in = (OPERATOR_TRANSFER - 1) * mixed.quantile(0.5)
            mixed = decode.Distribution(mixed.support + drawn_in[:, None], mixed.weights, mixed.p_fail)
        return mixed

    @torch.inference_mode()
    def _by_member(self, variants: Sequence[Variant], device: Device) -> list[decode.Distribution]:
        """What each member says of log2 slowdowns, in the members' order.

        A device that training never saw is told twice, by its whole sheet and by its vendor alone.
        """
        first = prompt(variants[0], device)
        wordings = [first]
        if not self._knows(device):
            wordings.append(replace(first, device=device_text(vendor_only(device), variants[0].problem.dtype)))
        suffixes = pad([self.tokenizer.encode_suffix(prompt(variant, device)) for variant in variants])
        told = []
        for number, member in enumerate(self.members):
            for wording in wordings:
                cache = self._encode(number, member, self.tokenizer.encode_prefix(wording, PREFIX_BUDGET))
                told.append(member.head.distribution(member.backbone, cache, *suffixes))
        return told

    def _knows(self, device: Device) -> bool:
        return self.familiarity is None or device.name in self.familiarity.devices

    def _encode(self, number: int, member: checkpoint.Member, prefix: Encoded) -> PrefixCache:
        """The source is encoded once and serves every device and problem; what follows it is short."""
        key = (number, prefix.source)
        if key not in self._sources:
            if len(self._sources) >= 4 * len(self.members):
                self._sources.pop(next(iter(self._sources)))
            self._sources[key] = encode_prefix(member.backbone, torch.tensor(prefix.source))
        return encode_prefix(member.backbone, torch.tensor(prefix.context), after=self._sources[key])

    def _log2_references(self, variants: Sequence[Variant], device: Device) -> tuple[np.ndarray, bool]:
        """(M,) log2 microseconds that slowdowns are relative to, and whether they are known.

        A problem without a floor is relative to the median of its space: unknown (told as 1 us) before a measurement
        of this space, and from then on part of the residual.
        """
        references = [reference_us(variant, device) for variant in variants]
        known = [us for us in references if us is not None]
        if len(known) == len(references):
            return np.log2(known), True
        return np.zeros(len(variants)), dataset.space_of(variants[0], device) in self._measured

    def _residual(self, variants: Sequence[Variant], middle: np.ndarray, device: Device) -> np.ndarray:
        """(M,) in log2: what the network got wrong on this space, or else the kernel's mean residual, shrunk."""
        space = dataset.space_of(variants[0], device)
        if space not in self._corrections:
            self._corrections[space] = self._learn(space, variants[0], device)
        mean, correction = self._corrections[space]
        if correction is None:
            return np.full(len(variants), mean)
        return mean + correction.predict(schema_features(variants), middle)

    def _learn(self, space: dataset.SpaceKey, variant: Variant, device: Device) -> tuple[float, Correction | None]:
        """The mean residual of a space, and what varies about it where enough was measured."""
        has_reference = reference_us(variant, device) is not None
        if here := self._measured.get(space):
            told, residual = self._residuals(here, device)
            mean = float(residual.mean())
            if has_reference:  # else the scale is unknown, and there is nothing to shrink towards
                mean *= len(here) / (len(here) + 0.5)
            if len(here) < 3 or not variant.kernel.schema:
                return mean, None
            effects, spread = self._sensitivity(variant, device)
            return mean, Correction(schema_features(list(here)), told, residual - mean, effects=effects, spread=spread)
        if not has_reference:
            return 0.0, None
        elsewhere = [
            self._residuals(measured, device)[1].mean()
            for (identity, _, name), measured in self._measured.items()
            if identity == space[0] and name == space[2]
        ]
        return float(np.sum(elsewhere)) / (len(elsewhere) + 0.5), None

    def _sensitivity(self, variant: Variant, device: Device) -> tuple[np.ndarray, float]:
        """How much the network's answer varies along each column of `schema_features` (variance, by Jansen's estimator:
        one parameter drawn anew at a time), and its standard deviation over the schema."""
        rng = np.random.default_rng(0)
        schema = variant.kernel.schema
        draw = lambda values: values[int(rng.integers(len(values)))]  # noqa: E731
        bases = [Config(tuple((name, draw(values)) for name, values in schema)) for _ in range(SENSITIVITY_BASES)]
        asked = list(bases)
        for i, (name, values) in enumerate(schema):
            asked += [Config((*c.params[:i], (name, draw(values)), *c.params[i + 1 :])) for c in bases]
        variants = [Variant(variant.kernel, variant.problem, config) for config in asked]
        told = self._medians(variants, device).reshape(len(schema) + 1, SENSITIVITY_BASES)
        effects = ((told[1:] - told[0]) ** 2).mean(axis=1) / 2
        columns = [len(values) if any(isinstance(v, str) for v in values) else 1 for _, values in schema]
        return np.repeat(effects, columns), float(told[0].std())

    def _residuals(self, measured: dict[Variant, float], device: Device) -> tuple[np.ndarray, np.ndarray]:
        """Told log2 slowdowns of the network alone, and measured minus told."""
        variants = list(measured)
        told = self._medians(variants, device)
        true = np.log2(list(measured.values())) - self._log2_references(variants, device)[0]
        return told, true - told

    def _medians(self, variants: Sequence[Variant], device: Device) -> np.ndarray:
        """(M,) log2 slowdowns of the network alone."""
        parts = [variants[start : start + BATCH] for start in range(0, len(variants), BATCH)]
        return np.concatenate([self._network(part, device).quantile(0.5).numpy() for part in parts])


def _calibrated(
    measurements: Sequence[Measurement],
    predictions: Sequence[Prediction],
    rows: np.ndarray,
    alpha: float,
    device: Device | None,
) -> dict[str, Any]:
    """What `NeuralCostModel.calibrate` says of the chosen rows, the factor on their half widths among it."""
    mine, told = [measurements[i] for i in rows], [predictions[i] for i in rows]
    spaces = [dataset.space_key(m) for m in mine]
    claimed = uncertainty.bands(told, alpha=alpha)
    true = uncertainty.at_best_scale(np.log2([m.latency_us for m in mine]), claimed.middle, told, spaces)
    scores, weights = conformal.scores("stretch", claimed, true), conformal.space_weights(spaces)
    covered = float(np.average(scores <= 1, weights=weights)) if mine else float("nan")
    if device is not None:
        weights *= [conformal.device_weight(device, m.device) for m in mine]
    factor = conformal.conformal_quantile(scores, alpha, weights=weights)
    return {"spaces": len(set(spaces)), "rows": len(mine), "covered": covered, "factor": factor}


def _difference(before: decode.Distribution, after: decode.Distribution) -> np.ndarray:
    """(COPULA_POINTS**2,) equally likely differences second - first of two distributions of one row each."""
    middles = scipy.stats.norm.ppf((np.arange(COPULA_POINTS) + 0.5) / COPULA_POINTS)
    own = EDIT_CORRELATION * middles[:, None] + (1 - EDIT_CORRELATION**2) ** 0.5 * middles
    shared = np.broadcast_to(middles[:, None], own.shape)
    return (_at(after, scipy.stats.norm.cdf(own)) - _at(before, scipy.stats.norm.cdf(shared))).ravel()


def _at(told: decode.Distribution, q: np.ndarray) -> np.ndarray:
    """The inverse CDF of the only row, as `decode.Distribution.quantile` has it, at many q at once."""
    return uncertainty.inverse_cdf(told.support[0].numpy(), told.weights[0].numpy(), q)
