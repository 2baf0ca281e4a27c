"""A two-layer perceptron, gelu(X @ W1) @ W2, in f32, fused so that the hidden layer stays near."""

from typing import Any

import numpy as np

from costmodel.records import Config, Device, Problem, SearchSpace, TensorSpec, UserError
from costmodel.workloads import cpp_workload


def make_problem(*, T: int, D: int, H: int, O: int) -> Problem:  # noqa: E741 (the usual letter)
    """X is [T, D], W1 [D, H], W2 [H, O], Y [T, O]; any size from 1 on. A gelu counts as ten flops."""
    if min(T, D, H, O) < 1:
        raise UserError(f"got T={T},D={D},H={H},O={O}, expected sizes of at least 1; give positive sizes")
    return Problem(
        op="mlp",
        inputs=(TensorSpec((T, D), "f32"), TensorSpec((D, H), "f32"), TensorSpec((H, O), "f32")),
        params=(("T", T), ("D", D), ("H", H), ("O", O)),
        flops=2 * T * H * (D + O) + 10 * T * H,
        bytes=4 * (T * D + D * H + H * O + T * O),
    )


def make_inputs(problem: Problem, seed: int) -> tuple[Any, ...]:
    """Weights are scaled by their fan-in, as in a network, so that gelu sees both of its sides."""
    rng = np.random.default_rng(seed)
    x, *weights = (rng.standard_normal(spec.shape, dtype=np.float32) for spec in problem.inputs)
    return x, *(weight / np.float32(np.sqrt(weight.shape[0])) for weight in weights)


def reference(problem: Problem, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    x, w1, w2 = (array.astype(np.float64) for array in inputs)
    hidden = x @ w1
    hidden *= 0.5 + 0.5 * np.tanh(np.sqrt(2 / np.pi) * (hidden + 0.044715 * hidden**3))
    return ((hidden @ w2).astype(np.float32),)


def fits_registers(config: Config, problem: Problem, device: Device) -> bool:
    """The block of sums leaves room among 32 vector registers for a row of weights; threads have a core each."""
    return config["MR"] * config["NV"] <= 24 and config["THREADS"] <= device.num_units


WORKLOAD = cpp_workload(
    __file__,
    space=SearchSpace.of(
        fits_registers,
        LANES=(8, 16),
        MR=(2, 4, 8),
        NV=(1, 2, 4),
        TT=(16, 128),
        HB=(32, 128, 1024),
        LIBM=(0, 1),
        THREADS=(1, 2),
    ),
    default=Config.of(LANES=8, MR=4, NV=1, TT=16, HB=128, LIBM=0, THREADS=1),
    make_problem=make_problem,
    problems={
        "block": {"T": 160, "D": 192, "H": 768, "O": 192},  # a transformer's proportions
        "few": {"T": 5, "D": 512, "H": 2048, "O": 512},  # 8 MB of weights for five tokens
        "small": {"T": 8000, "D": 32, "H": 64, "O": 16},  # activations weigh as much as products
        "odd": {"T": 397, "D": 130, "H": 391, "O": 67},
        "neck": {"T": 3000, "D": 256, "H": 24, "O": 256},  # a narrow hidden layer: traffic decides
    },
    make_inputs=make_inputs,
    reference=reference,
    tolerance=1e-4,
)
