"""The Gaussian process of the search's residual, in NumPy alone: what imports it starts quickly."""

from __future__ import annotations

import math

import numpy as np
from scipy.linalg import solve_triangular


class MaternProcess:
    """Gaussian process with an isotropic Matern-5/2 kernel; scales by marginal likelihood over a small grid.

    Rasmussen and Williams, Gaussian Processes for Machine Learning, eq. 2.25-2.26, 4.17 and 5.8.
    """

    def __init__(self) -> None:
        self._scale, self._noise, self._sd = 1.0, 0.01, 1.0
        self.evidence = -math.inf  # log marginal likelihood of the fit, up to a constant of n

    def fit(self, features: np.ndarray, target: np.ndarray) -> None:
        """features (n, d) standardised, target (n,) in log2, its mean taken as zero."""
        self._x, self._y = features, target
        distance = _distances(features, features)
        unit = math.sqrt(features.shape[1]) / 2
        for scale in (0.5, 1.0, 2.0, 4.0, 8.0):
            shape = _matern(distance / (scale * unit))
            for noise in (1e-3, 1e-2, 1e-1):
                chol = np.linalg.cholesky(shape + noise * np.eye(len(target)))
                alpha = solve_triangular(chol, target, lower=True)
                variance = max(float(alpha @ alpha) / len(target), 1e-6)
                evidence = -0.5 * len(target) * math.log(variance) - float(np.log(np.diag(chol)).sum())
                if evidence > self.evidence:
                    self.evidence, self._scale, self._noise = evidence, scale * unit, noise
                    self._sd = math.sqrt(variance)
        covariance = _matern(distance / self._scale) + self._noise * np.eye(len(target))
        self._chol = np.linalg.cholesky(covariance)
        self._alpha = solve_triangular(self._chol.T, solve_triangular(self._chol, target, lower=True))

    def predict(self, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of the noise-free value, each (m,)."""
        believed = self.believer(features)
        return believed.mean, believed.sd()

    def believer(self, features: np.ndarray) -> Believer:
        """The posterior over the rows of `features` (m, d), to which points may be added at their means."""
        cross = self._cross(features)
        reach = solve_triangular(self._chol, cross.T, lower=True)
        return Believer(features, cross @ self._alpha, reach, self._scale, self._noise, self._sd)

    def sample(self, features: np.ndarray, draws: int, rng: np.random.Generator) -> np.ndarray:
        """Joint draws of the noise-free values, (draws, m)."""
        cross = self._cross(features)
        reach = solve_triangular(self._chol, cross.T, lower=True)
        covariance = _matern(_distances(features, features) / self._scale) - reach.T @ reach
        chol = np.linalg.cholesky(covariance + 1e-6 * np.eye(len(features)))
        return cross @ self._alpha + self._sd * rng.standard_normal((draws, len(features))) @ chol.T

    def _cross(self, features: np.ndarray) -> np.ndarray:
        return _matern(_distances(features, self._x) / self._scale)


class Believer:
    """A posterior over m points. Believing one of them at its mean leaves every mean as it is and shrinks variances."""

    def __init__(
        self, features: np.ndarray, mean: np.ndarray, reach: np.ndarray, scale: float, noise: float, sd: float
    ) -> None:
        self.mean = mean
        self._features, self._reach, self._scale, self._noise, self._unit = features, reach, scale, noise, sd
        self._variance = np.maximum(1.0 - (reach**2).sum(axis=0), 1e-9)

    def sd(self) -> np.ndarray:
        """(m,)"""
        return self._unit * np.sqrt(self._variance)

    def add(self, index: int) -> None:
        """Believe the point `index` at its mean (Ginsbourger et al. 2010): one more row of the Cholesky factor."""
        covariance = _matern(_distances(self._features, self._features[index : index + 1])[:, 0] / self._scale)
        covariance -= self._reach.T @ self._reach[:, index]
        row = covariance / math.sqrt(self._variance[index] + self._noise)
        self._reach = np.vstack([self._reach, row])
        self._variance = np.maximum(self._variance - row**2, 1e-9)


def _distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    squares = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1)[None] - 2 * a @ b.T
    return np.sqrt(np.maximum(squares, 0.0))


def _matern(r: np.ndarray) -> np.ndarray:
    scaled = math.sqrt(5.0) * r
    return (1.0 + scaled + scaled**2 / 3.0) * np.exp(-scaled)
