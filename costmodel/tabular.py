"""Any numeric head on any feature vector, as a scikit-learn user would hold it.

    model = TabularRegressor("normalized").fit(features, y)
    model.predict(features)                  # one number a row; readout="median" and others
    model.distribution(features).quantile(0.9)

A small network turns the features into one embedding, which takes the place of a prompt (the head on top of phi(x) of
Decoding-based Regression, arXiv 2501.19383). Heads see y as z = (y - mean) / deviation.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from costmodel.codecs.digits import IEEE, P10, FixedPoint, Normalized
from costmodel.codecs.grammar import NumberCodec
from costmodel.codecs.grids import LinearGrid, QuantileGrid
from costmodel.codecs.repeated import Repeated
from costmodel.model import decode, decoder, heads
from costmodel.model.digit_head import DigitHead
from costmodel.model.grid_head import GridHead
from costmodel.model.losses import Targets
from costmodel.records import UserError

MakeHead = Callable[[int, np.ndarray], heads.Head]  # hidden size, training values of z -> a head
MARGIN = 0.05  # of the range of z, by which a grid or a digit tree reaches beyond it
BATCH = 1024  # rows in one pass of `distribution`

# The codecs of `heads.DIGITS`, writing z as it stands, with its sign; those of a cost model write a slowdown.
_SHORT: dict[str, Any] = {"mantissa_digits": 3, "min_exponent": -5, "max_exponent": 1, "domain": "log2"}
DIGITS: dict[str, Callable[[float, float], NumberCodec]] = {
    "p10": lambda low, high: P10(**_SHORT),
    "p10-merged": lambda low, high: P10(**_SHORT, layout="merged"),
    "p10-exponent-first": lambda low, high: P10(**_SHORT, layout="exponent_first"),
    "ieee": lambda low, high: IEEE(base=10, exponent_digits=1, mantissa_digits=3, domain="log2"),
    "normalized": lambda low, high: Normalized(low=low, high=high),
    "normalized-thrice": lambda low, high: Repeated(Normalized(low=low, high=high), times=3),
    "fixed-point": lambda low, high: FixedPoint(),
}


class TabularRegressor:
    """A decoder with a numeric head on features: `head` is one of `heads.NAMES`, or makes one.

    One recipe for all heads, so that they can be compared: AdamW with warm-up and a cosine, `steps` batches of `batch`
    rows. Equal seeds give equal models.
    """

    def __init__(
        self,
        head: str | MakeHead = "grid",
        *,
        loss: str | None = None,
        hidden_size: int = 64,
        layers: int = 2,
        steps: int = 1000,
        batch: int = 128,
        learning_rate: float = 2e-3,
        weight_decay: float = 0.05,
        seed: int = 0,
    ) -> None:
        self.head_name, self.loss, self.hidden_size, self.layers = head, loss, hidden_size, layers
        self.steps, self.batch, self.learning_rate, self.seed = steps, batch, learning_rate, seed
        self.weight_decay = weight_decay

    def fit(self, features: ArrayLike, y: ArrayLike) -> TabularRegressor:
        """features (N, F) and y (N,), all finite."""
        x, values = _matrix(features), np.asarray(y, dtype=np.float64)
        if values.shape != (len(x),) or not np.isfinite(values).all():
            raise UserError(
                f"got {len(x)} rows of features and y of shape {values.shape}, expected a finite y for each"
            )
        self.x_mean, self.x_std = x.mean(0), np.maximum(x.std(0), 1e-9)
        self.y_mean, self.y_std = float(values.mean()), max(float(values.std()), 1e-12)
        z = (values - self.y_mean) / self.y_std
        self._build(x.shape[1], z)
        self._train(self._scaled(x), torch.as_tensor(z, dtype=torch.float32))
        return self

    @torch.no_grad()
    def distribution(self, features: ArrayLike) -> decode.Distribution:
        """(N, F) -> what is said of y, in its own units."""
        parts = [
            self.head.distribution(self.backbone, self._nothing(), *self._suffixes(rows))
            for rows in self._scaled(_matrix(features)).split(BATCH)
        ]
        widest = max(part.support.shape[1] for part in parts)
        support, weights = (torch.cat([_wide(x, widest, how) for x in every]) for every, how in (
            ([p.support for p in parts], "last"), ([p.weights for p in parts], "zero")
        ))  # fmt: skip
        return decode.Distribution(self.y_mean + self.y_std * support, weights, torch.cat([p.p_fail for p in parts]))

    def predict(self, features: ArrayLike, *, readout: str = "mean") -> np.ndarray:
        """(N, F) -> (N,): each distribution as one number, see `decode.read` ("mean", "median" and "mode" have a
        meaning whatever the unit of y is)."""
        return decode.read(self.distribution(features), readout).numpy()

    def _build(self, width: int, z: np.ndarray) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            self.embed = nn.Sequential(
                nn.Linear(width, self.hidden_size), nn.GELU(), nn.Linear(self.hidden_size, self.hidden_size)
            )
            self.head = self._make_head(z)
        config = decoder.small_config(8, hidden_size=self.hidden_size, layers=self.layers, heads=4)
        self.backbone = decoder.build(config, seed=self.seed)

    def _make_head(self, z: np.ndarray) -> heads.Head:
        name = self.head_name
        if not isinstance(name, str):
            return name(self.hidden_size, z)
        low, high = float(z.min()), float(z.max())
        low, high = low - MARGIN * (high - low), high + MARGIN * (high - low)
        chosen: dict[str, Any] = {} if self.loss is None else {"loss": self.loss}
        if name in DIGITS:
            return DigitHead(
                self.hidden_size, DIGITS[name](low, high), z_low=float(z.min()), z_high=float(z.max()), **chosen
            )
        if name in ("grid", "learned-grid"):
            return GridHead(self.hidden_size, LinearGrid(low=low, high=high), learned=name != "grid", **chosen)
        if name == "riemann":
            grid = QuantileGrid(edges=np.linspace(low, high, heads.RIEMANN_BINS + 1).tolist())
            return GridHead(self.hidden_size, grid, **{"loss": "hard", **chosen})
        return heads.make(name, self.hidden_size, z=z.tolist(), vocab_size=8, loss=self.loss)

    def _train(self, x: Tensor, z: Tensor) -> None:
        network = nn.ModuleDict({"embed": self.embed, "backbone": self.backbone, "head": self.head}).train()
        optimizer = torch.optim.AdamW(
            network.parameters(), lr=self.learning_rate, betas=(0.9, 0.98), weight_decay=self.weight_decay
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self._rate)
        rng = np.random.default_rng(self.seed)
        for _ in range(self.steps):
            rows = torch.as_tensor(rng.integers(0, len(z), min(self.batch, len(z))))
            no = torch.zeros(len(rows), dtype=torch.bool)
            loss, _ = self.head.loss(self.backbone, self._nothing(), *self._suffixes(x[rows]), Targets(z[rows], no, no))
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        network.eval()

    def _rate(self, step: int) -> float:
        """Share of the learning rate: a warm-up over a twentieth of the steps, and a cosine."""
        warm = max(1, self.steps // 20)
        return min((step + 1) / warm, 0.5 * (1 + math.cos(math.pi * step / self.steps)) + 1e-3)

    def _nothing(self) -> decoder.PrefixCache:
        """A prefix that says nothing: one constant token."""
        return decoder.encode_prefix(self.backbone, torch.zeros(1, dtype=torch.long))

    def _suffixes(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.embed(x)[:, None], torch.ones(len(x), dtype=torch.long)

    def _scaled(self, x: np.ndarray) -> Tensor:
        return torch.as_tensor((x - self.x_mean) / self.x_std, dtype=torch.float32)


def _matrix(features: ArrayLike) -> np.ndarray:
    x = np.asarray(features, dtype=np.float64)
    if x.ndim != 2 or not np.isfinite(x).all():
        raise UserError(f"got features of shape {x.shape}, expected a finite (rows, columns)")
    return x


def _wide(x: Tensor, width: int, how: str) -> Tensor:
    """Rows padded to a width: with their last value, or with zeros."""
    spare = width - x.shape[1]
    return torch.cat([x, x[:, -1:].expand(-1, spare) if how == "last" else x.new_zeros(len(x), spare)], -1)
