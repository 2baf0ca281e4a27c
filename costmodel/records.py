"""The nouns of costmodel and its two protocols: the ground floor, standard library only.

Times are microseconds, sizes are bytes, and a name carries its unit. Every noun is frozen; raw samples are
kept and statistics are derived from them; a failure is a status, not an exception.

    >>> config = Config.of(TILE=64, THREADS=2)
    >>> config["TILE"], str(config)
    (64, 'TILE=64,THREADS=2')
"""

from __future__ import annotations

import bisect
import hashlib
import itertools
import json
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

from costmodel.notebook import bars, format_us, shown

Scalar = int | float | str | bool
Params = tuple[tuple[str, Scalar], ...]
Language = Literal["cpp", "triton", "cuda", "hip", "opencl", "hlo", "operator"]
Status = Literal["ok", "compile_error", "launch_error", "wrong_result", "timeout", "crash", "compiled"]

LANGUAGES: tuple[str, ...] = get_args(Language)
# The short names of element types, by the names that torch and Triton give them.
DTYPES = {
    "float64": "f64", "float32": "f32", "float16": "f16", "bfloat16": "bf16", "float8_e4m3fn": "f8_e4m3",
    "float8_e5m2": "f8_e5m2", "int64": "i64", "int32": "i32", "int16": "i16", "int8": "i8", "uint8": "u8",
    "bool": "bool",
}  # fmt: skip
STATUSES: tuple[str, ...] = get_args(Status)
READOUTS = ("median", "mean", "mean-raw", "relative", "mode")
COPULA_STEPS = 256  # least number of ranks at which two dependent latencies are compared
_NORMAL = statistics.NormalDist()
_BARS = 24  # of a prediction's histogram


class UserError(Exception):
    """A mistake the user can mend. The message says what was got, what was expected and what to do."""


def digest(*parts: object) -> str:
    """A short, stable identity of JSON-able parts (16 hexadecimal digits)."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input of a problem."""

    shape: tuple[int, ...]
    dtype: str  # "f32", "f64", "bf16", "i32", ...


@dataclass(frozen=True, slots=True)
class Problem:
    """What is computed, on which sizes. `bytes` is the compulsory traffic: each byte read or written once."""

    op: str
    inputs: tuple[TensorSpec, ...]
    params: Params
    flops: int
    bytes: int

    def __getitem__(self, name: str) -> Scalar:
        return dict(self.params)[name]

    def __str__(self) -> str:
        return ",".join(f"{name}={value}" for name, value in self.params)

    @property
    def dtype(self) -> str:
        """The type that decides the arithmetic rate: that of the first input."""
        return self.inputs[0].dtype if self.inputs else "f32"


@dataclass(frozen=True, slots=True)
class Kernel:
    """How it is computed: the exact text that is compiled, and the names and values that may be tuned.

    `source` is None for records that others published; `origin`, `name` and `schema` then stand for it.
    """

    name: str
    language: Language
    source: str | None
    schema: tuple[tuple[str, tuple[Scalar, ...]], ...] = ()
    origin: str = ""

    def __post_init__(self) -> None:
        if self.language not in LANGUAGES:
            raise UserError(f"got language {self.language!r}, expected one of {', '.join(LANGUAGES)}")

    @property
    def identity(self) -> str:
        """Equal for equal text, whatever the kernel is called."""
        if self.source is not None:
            return digest(self.language, self.source)
        return digest(self.language, self.origin, self.name, self.schema)


@dataclass(frozen=True, slots=True)
class Config:
    """The tunable choices, in the order of the kernel's schema."""

    params: Params

    @staticmethod
    def of(**params: Scalar) -> Config:
        return Config(tuple(params.items()))

    def __getitem__(self, name: str) -> Scalar:
        for key, value in self.params:
            if key == name:
                return value
        raise KeyError(name)

    def get(self, name: str, default: Scalar) -> Scalar:
        return dict(self.params).get(name, default)

    def as_dict(self) -> dict[str, Scalar]:
        return dict(self.params)

    def __str__(self) -> str:
        return ",".join(f"{name}={value}" for name, value in self.params)


@dataclass(frozen=True, slots=True)
class Variant:
    """The thing that has a latency: a kernel, on a problem, with a config."""

    kernel: Kernel
    problem: Problem
    config: Config


@dataclass(frozen=True, slots=True)
class Device:
    """A data sheet. `num_units` counts SMs, CUs or cores; `peak_tflops` is dense, by "dtype" or "dtype/unit"."""

    name: str
    kind: Literal["cpu", "gpu", "accelerator"]
    vendor: str
    arch: str
    num_units: int
    clock_mhz: float
    peak_tflops: tuple[tuple[str, float], ...]
    peak_gb_per_s: float
    l2_bytes: int
    memory_bytes: int = 0
    tdp_watts: float = 0.0
    details: Params = ()  # further numbers of the sheet: l1_bytes, l3_bytes, shared_bytes_per_unit, ...

    @property
    def identity(self) -> str:
        """Of the whole sheet: two devices that share an architecture stay apart."""
        return digest(
            self.name, self.kind, self.vendor, self.arch, self.num_units, self.clock_mhz, self.peak_tflops,
            self.peak_gb_per_s, self.l2_bytes, self.memory_bytes, self.tdp_watts, self.details,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Timing:
    """How a number is taken. Two numbers may meet only if their timings are equal."""

    cache: Literal["cold", "warm"] = "warm"
    warmup_us: float = 2000.0
    min_samples: int = 7
    relative_error: float = 0.01


@dataclass(frozen=True, slots=True)
class Measurement:
    """One variant on one device in one sitting. `samples_us` is non-empty exactly when status is "ok".

    Status "compiled" says that it was built for the device and never run: it carries counters and is no failure.
    """

    variant: Variant
    device: Device
    timing: Timing
    toolchain: tuple[tuple[str, str], ...]
    status: Status
    samples_us: tuple[float, ...] = ()
    error: str = ""
    counters: tuple[tuple[str, float], ...] = ()
    collected_at: str = ""  # ISO 8601, UTC

    def __post_init__(self) -> None:
        if self.status not in STATUSES:
            raise UserError(f"got status {self.status!r}, expected one of {', '.join(STATUSES)}")
        if (self.status == "ok") != bool(self.samples_us):
            raise UserError(f"got status {self.status!r} with {len(self.samples_us)} samples; only ok has samples")

    @property
    def latency_us(self) -> float:
        """The median sample; NaN for a failure."""
        return statistics.median(self.samples_us) if self.samples_us else float("nan")

    @property
    def min_us(self) -> float:
        """The fastest sample; NaN for a failure. On a CPU it repeats better than the median does."""
        return min(self.samples_us) if self.samples_us else float("nan")


@dataclass(frozen=True, slots=True)
class Prompt:
    """A variant as text. Source, device and problem are the prefix that all configs of one search share."""

    source: str
    device: str
    problem: str
    config: tuple[str, ...]  # NAME=value in schema order


@dataclass(frozen=True, slots=True)
class Prediction:
    """A distribution over latency: weights on an ascending support, and the probability of failure.

    `scale_known` is False where only the order of predictions means something (no floor and no probe yet).
    `trust` and `reason` say whether the kernel is near enough to what the model was trained on.
    """

    support_us: tuple[float, ...]
    weights: tuple[float, ...]
    p_fail: float = 0.0
    scale_known: bool = True
    trust: bool = True
    reason: str = ""

    def __repr__(self) -> str:
        return f"Prediction({', '.join(f'{name} {told}' for name, told in self._told().items())})"

    def _repr_html_(self) -> str:
        """For a notebook: the figures, and the distribution between its 1 and 99 % quantiles."""
        low, high = (self.quantile_us(q) for q in (0.01, 0.99))
        edges = [low * (high / low) ** (i / _BARS) for i in range(_BARS + 1)] if high > low > 0 else []
        below = [self.probability_below(us) for us in edges]
        picture = bars(
            [right - left for left, right in itertools.pairwise(below)],
            f"probability from {format_us(low)} to {format_us(high)}, a logarithmic axis",
        )
        return shown("Prediction", self._told(), picture=picture)

    def _told(self) -> dict[str, str]:
        found = {
            "median": format_us(self.median_us),
            "90 % between": f"{format_us(self.quantile_us(0.05))} and {format_us(self.quantile_us(0.95))}",
        }
        found |= {"may fail": f"{self.p_fail:.0%}"} if self.p_fail >= 0.005 else {}
        found |= {} if self.scale_known else {"scale": "unknown: only the order means something"}
        if self.reason or not self.trust:
            found["trust" if self.trust else "do not trust"] = self.reason
        return found

    @property
    def mean_us(self) -> float:
        return sum(x * w for x, w in zip(self.support_us, self.weights, strict=True))

    @property
    def median_us(self) -> float:
        return self.quantile_us(0.5)

    def quantile_us(self, q: float) -> float:
        """Inverse CDF, linear between support points; q in [0, 1]."""
        if not 0.0 <= q <= 1.0:
            raise ValueError(f"got q={q}, expected 0 <= q <= 1")
        below = 0.0
        for i, weight in enumerate(self.weights):
            if weight > 0 and below + weight >= q * (1 - 1e-12):
                inside = min(1.0, max(0.0, (q - below) / weight))
                left, right = self._cell(i)
                return left + inside * (right - left)
            below += weight
        return self.support_us[-1]

    def read_us(self, readout: str) -> float:
        """One number for the distribution: the best guess under a loss (RAIL, arXiv 2403.04182), or its peak.

        median: least absolute error, of the latency as of its logarithm. mean: least squared error of log2 latency.
        mean-raw: least squared error of the latency. relative: least |guess - latency| / latency, the median under
        weights w / latency. mode: where the density over log2 latency is highest.
        """
        check_readout(readout)
        if readout == "median":
            return self.median_us
        if readout == "mean-raw":
            return self.mean_us
        points = list(zip(self.support_us, self.weights, strict=True))
        if readout == "mean":
            return 2.0 ** sum(w * math.log2(x) for x, w in points)
        if readout == "relative":
            shares = [w / x for x, w in points]
            total = sum(shares)
            return Prediction(self.support_us, tuple(share / total for share in shares)).median_us
        return self._mode_us()

    def _mode_us(self) -> float:
        """The densest support point. One at an end reaches as far out as in: it is a whole bin, not a half."""
        mass: dict[float, float] = {}  # several strings, or members of an ensemble, may say the same
        for us, weight in zip(self.support_us, self.weights, strict=True):
            mass[us] = mass.get(us, 0.0) + weight
        gaps = [math.log2(right / left) for left, right in itertools.pairwise(mass)]
        if not gaps:
            return self.support_us[0]
        widths = [left + right for left, right in itertools.pairwise([gaps[0], *gaps, gaps[-1]])]
        density = [weight / width for weight, width in zip(mass.values(), widths, strict=True)]
        return list(mass)[density.index(max(density))]

    def probability_below(self, latency_us: float) -> float:
        """The CDF that `quantile_us` inverts."""
        below = 0.0
        for i, weight in enumerate(self.weights):
            left, right = self._cell(i)
            if latency_us <= left:
                break
            below += weight if latency_us >= right else weight * (latency_us - left) / (right - left)
        return below

    @property
    def log2_width(self) -> float:
        """How many doublings the 90 % interval spans: the less, the surer."""
        return math.log2(self.quantile_us(0.95) / self.quantile_us(0.05))

    def abstains(self, *, max_factor: float = 8.0) -> bool:
        """Whether to measure rather than to believe: its scale is unknown, it is not trusted, or the ends of its 90 %
        interval lie further apart than `max_factor`."""
        return not (self.scale_known and self.trust) or self.log2_width > math.log2(max_factor)

    def probability_faster_than(self, other: Prediction, *, correlation: float = 0.0) -> float:
        """P(this runs and is faster than the other), where one that fails is never faster; a tie counts half.

        correlation: of a Gaussian copula between the two latencies (both depend on what the model got wrong about their
        kernel). At 0 they are independent and the integral is exact. Failures are independent of everything.

        With Q(u) this latency's quantiles and G the other's CDF,
        P(other > Q(u) | u) = 1 - Phi((Phi^-1(G(Q(u))) - r Phi^-1(u)) / sqrt(1 - r^2)),
        averaged over u by the midpoint rule between the kinks of G(Q(u)), which is linear there.
        """
        if not -1.0 < correlation < 1.0:
            raise UserError(f"got correlation={correlation}, expected a number above -1 and below 1")
        (edges, cdf), (other_edges, other_cdf) = self._table(), other._table()
        ranks = {*cdf, *(_interpolated(us, edges, cdf) for us in other_edges)}
        ranks |= {i / COPULA_STEPS for i in range(COPULA_STEPS + 1)} if correlation else {0.0, 1.0}
        faster = 0.0
        for low, high in itertools.pairwise(sorted(ranks)):
            rank = (low + high) / 2
            below = _interpolated(_interpolated(rank, cdf, edges), other_edges, other_cdf)
            if correlation and 0.0 < below < 1.0:
                normal = _NORMAL.inv_cdf(below) - correlation * _NORMAL.inv_cdf(rank)
                below = _NORMAL.cdf(normal / math.sqrt(1 - correlation**2))
            faster += (high - low) * (1.0 - below)
        return (1.0 - self.p_fail) * (other.p_fail + (1.0 - other.p_fail) * faster)

    def _table(self) -> tuple[list[float], list[float]]:
        """The ends of the cells, ascending, and the CDF at each: 0 at the first, 1 at the last."""
        total = sum(self.weights)
        edges = [self.support_us[0], *(self._cell(i)[1] for i in range(len(self.support_us)))]
        return edges, [0.0, *(min(below / total, 1.0) for below in itertools.accumulate(self.weights))]

    def _cell(self, i: int) -> tuple[float, float]:
        """What a support point stands for: from half way to its left neighbour to half way to its right one."""
        left = self.support_us[i] if i == 0 else (self.support_us[i - 1] + self.support_us[i]) / 2
        last = i == len(self.support_us) - 1
        return left, self.support_us[i] if last else (self.support_us[i] + self.support_us[i + 1]) / 2


def _interpolated(x: float, xs: Sequence[float], ys: Sequence[float]) -> float:
    """y at x, linear between ascending xs and constant beyond them; where several xs equal x, half way up the step."""
    first, last = bisect.bisect_left(xs, x), bisect.bisect_right(xs, x)
    if first < last:
        return (ys[first] + ys[last - 1]) / 2
    if first in (0, len(xs)):
        return ys[0] if first == 0 else ys[-1]
    share = (x - xs[first - 1]) / (xs[first] - xs[first - 1])
    return ys[first - 1] + share * (ys[first] - ys[first - 1])


def check_readout(readout: str) -> None:
    if readout not in READOUTS:
        raise UserError(f"got readout {readout!r}, expected one of {', '.join(READOUTS)}")


IsValid = Callable[[Config, Problem, Device], bool]


def everything_is_valid(config: Config, problem: Problem, device: Device) -> bool:
    return True


@dataclass(frozen=True, slots=True)
class SearchSpace:
    """Names, values and the one statement of which combinations make sense."""

    params: tuple[tuple[str, tuple[Scalar, ...]], ...]
    is_valid: IsValid = everything_is_valid

    @staticmethod
    def of(is_valid: IsValid = everything_is_valid, **params: Sequence[Scalar]) -> SearchSpace:
        return SearchSpace(tuple((name, tuple(values)) for name, values in params.items()), is_valid)

    def configs(self, problem: Problem, device: Device) -> Iterator[Config]:
        """Every valid config, in a fixed order (the last parameter varies fastest)."""
        names = [name for name, _ in self.params]
        for values in itertools.product(*(values for _, values in self.params)):
            config = Config(tuple(zip(names, values, strict=True)))
            if self.is_valid(config, problem, device):
                yield config

    def neighbours(self, config: Config, problem: Problem, device: Device) -> Iterator[Config]:
        """Valid configs that differ in one parameter."""
        for i, (name, values) in enumerate(self.params):
            for value in values:
                if value != config[name]:
                    other = Config((*config.params[:i], (name, value), *config.params[i + 1 :]))
                    if self.is_valid(other, problem, device):
                        yield other


@dataclass(frozen=True, slots=True)
class Launch:
    """One start of a GPU kernel; a variant is one or several, in order.

    entry: the jit function (Triton), or the kernel's name in the text (CUDA).
    args: tensors and numbers in the order of the entry's parameters; in CUDA an int is 32 bits wide, a float 32 bits.
    keywords: Triton's constants and options by name (BLOCK=128, num_warps=4); CUDA has none, its config is macros.
    block, shared_bytes: CUDA's threads of a block and its dynamic shared memory.
    """

    entry: Any
    grid: tuple[int, ...]
    args: tuple[Any, ...]
    keywords: Mapping[str, Any] = field(default_factory=dict)
    block: tuple[int, ...] = ()
    shared_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Workload:
    """A tunable kernel with everything that is needed to run and to check it.

    make_problem: sizes by name -> Problem.           make_inputs: (problem, seed) -> arrays.
    reference: (problem, inputs) -> expected outputs.
    tolerance: largest error allowed, as a share of the largest expected magnitude (integers must be equal).
    launch: (problem, config, inputs, outputs) -> Launches, for Triton and CUDA; it may make scratch tensors on the
        inputs' device and must not look at their values. None for C++, which has one calling convention.
    outputs: problem -> what the kernel writes, for Triton and CUDA. Before each start they hold garbage.
    path: what `workloads.load` takes to find it again, as an isolated worker does (FILE, or GENERATOR.py:NUMBER).
    """

    kernel: Kernel
    space: SearchSpace
    default: Config
    problems: Mapping[str, Problem]
    make_problem: Callable[..., Problem]
    make_inputs: Callable[[Problem, int], tuple[Any, ...]]
    reference: Callable[[Problem, tuple[Any, ...]], tuple[Any, ...]]
    tolerance: float = 1e-4
    launch: Callable[..., Sequence[Launch]] | None = None
    outputs: Callable[[Problem], tuple[TensorSpec, ...]] | None = None
    path: Path = field(default_factory=Path)

    def variants(self, problem: Problem, device: Device) -> list[Variant]:
        return [Variant(self.kernel, problem, config) for config in self.space.configs(problem, device)]


class Runner(Protocol):
    """Runs candidates on one device."""

    device: Device

    def measure(self, variants: Sequence[Variant]) -> list[Measurement]:
        """Same length and order as `variants`. A bad variant is a status, never an exception."""
        ...


class CostModel(Protocol):
    """Predicts latencies."""

    def predict(self, variants: Sequence[Variant], device: Device) -> list[Prediction]:
        """Same length and order as `variants`; equal inputs give equal predictions."""
        ...

    def update(self, measurements: Sequence[Measurement]) -> None:
        """Take in measurements, failures among them."""
        ...
