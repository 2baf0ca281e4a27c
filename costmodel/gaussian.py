"""The Gaussian process of the search's residual, in NumPy alone: what imports it starts quickly."""

from __future__ import annotations

import math

import numpy as np


class MaternProcess:
    """Gaussian process with an isotropic Matern-5/2 kernel; scales by marginal likelihood over a small grid.

    Rasmussen and Williams, Gaussian Processes for Machine Learning, eq. 2.25-2.26, 4.17 and 5.8.
    """

    def __init__(self) -> None:
        self._scale, self._noise, self._sd = 1.0, 0.01, 1.0

    def fit(self, features: np.ndarray, target: np.ndarray) -> None:
        """features (n, d) standardised, target (n,) in log2, its mean taken as zero."""
        self._x, self._y = features, target
        distance = _distances(features, features)
        unit = math.sqrt(features.shape[1]) / 2
        best = -math.inf
        for scale in (0.5, 1.0, 2.0, 4.0, 8.0):
            shape = _matern(distance / (scale * unit))
            for noise in (1e-3, 1e-2, 1e-1):
                chol = np.linalg.cholesky(shape + noise * np.eye(len(target)))
                alpha = np.linalg.solve(chol, target)
                variance = max(float(alpha @ alpha) / len(target), 1e-6)
                evidence = -0.5 * len(target) * math.log(variance) - float(np.log(np.diag(chol)).sum())
                if evidence > best:
                    best, self._scale, self._noise, self._sd = evidence, scale * unit, noise, math.sqrt(variance)
        self._factor()

    def add(self, features: np.ndarray, target: np.ndarray) -> None:
        """Take in (believed) points without choosing the scales anew."""
        self._x, self._y = np.vstack([self._x, features]), np.concatenate([self._y, target])
        self._factor()

    def _factor(self) -> None:
        covariance = _matern(_distances(self._x, self._x) / self._scale) + self._noise * np.eye(len(self._y))
        self._chol = np.linalg.cholesky(covariance)
        self._alpha = np.linalg.solve(self._chol.T, np.linalg.solve(self._chol, self._y))

    def predict(self, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of the noise-free value, each (m,)."""
        cross = _matern(_distances(features, self._x) / self._scale)
        reach = np.linalg.solve(self._chol, cross.T)
        variance = np.maximum(1.0 - (reach**2).sum(axis=0), 1e-9)
        return cross @ self._alpha, self._sd * np.sqrt(variance)

    def sample(self, features: np.ndarray, draws: int, rng: np.random.Generator) -> np.ndarray:
        """Joint draws of the noise-free values, (draws, m)."""
        cross = _matern(_distances(features, self._x) / self._scale)
        reach = np.linalg.solve(self._chol, cross.T)
        covariance = _matern(_distances(features, features) / self._scale) - reach.T @ reach
        chol = np.linalg.cholesky(covariance + 1e-6 * np.eye(len(features)))
        return cross @ self._alpha + self._sd * rng.standard_normal((draws, len(features))) @ chol.T


def _distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    squares = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1)[None] - 2 * a @ b.T
    return np.sqrt(np.maximum(squares, 0.0))


def _matern(r: np.ndarray) -> np.ndarray:
    scaled = math.sqrt(5.0) * r
    return (1.0 + scaled + scaled**2 / 3.0) * np.exp(-scaled)
