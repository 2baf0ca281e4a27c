"""What a prior gets wrong on one space, learned from the configs that were measured there.

A Matern Gaussian process takes the residual. It sees the parameters scaled by how much the prior varies along them,
and the prior itself as one more coordinate, as the search's does (`picking`). From TREES_FROM measurements on it is
averaged with randomised trees (Geurts et al. 2006) that see the same; beyond PROCESS_UP_TO there are trees alone.
"""

from __future__ import annotations

import numpy as np
from sklearn.ensemble import ExtraTreesRegressor

from costmodel.gaussian import MaternProcess

NARROWEST, WIDEST = 0.3, 3.0  # bounds on the scale of a parameter: what the prior ignores may be what it gets wrong
TREES_FROM = 48
PROCESS_UP_TO = 512  # a process over more measurements takes long, and trees have no need of it there


class Correction:
    """Fitted to n measured configs: features (n, d) standardised, prior (n,) and residual (n,) in log2.

    effects (d,): the prior's variance along each parameter. `spread`: its standard deviation over the space.
    """

    def __init__(
        self, features: np.ndarray, prior: np.ndarray, residual: np.ndarray, *, effects: np.ndarray, spread: float
    ) -> None:
        root = np.sqrt(effects)
        mean_square = float(np.sqrt(effects.mean()))
        self._scale = np.clip(root / mean_square, NARROWEST, WIDEST) if mean_square > 0 else np.ones(len(effects))
        self._spread = max(spread, 1e-6)
        seen = self._coordinates(features, prior)
        self._process: MaternProcess | None = None
        self._trees: ExtraTreesRegressor | None = None
        if len(residual) <= PROCESS_UP_TO:
            self._process = MaternProcess()
            self._process.fit(seen, residual)
        if len(residual) >= TREES_FROM:
            self._trees = ExtraTreesRegressor(100, min_samples_leaf=2, max_features=0.7, random_state=0)
            self._trees.fit(seen, residual)

    def predict(self, features: np.ndarray, prior: np.ndarray) -> np.ndarray:
        """The residual in log2 (m,), given features (m, d) and prior (m,)."""
        seen = self._coordinates(features, prior)
        told = [self._process.predict(seen)[0]] if self._process else []
        told += [self._trees.predict(seen)] if self._trees else []
        return np.mean(told, axis=0)

    def _coordinates(self, features: np.ndarray, prior: np.ndarray) -> np.ndarray:
        return np.column_stack([features * self._scale, prior / self._spread])
