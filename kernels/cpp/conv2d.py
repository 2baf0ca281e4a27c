"""2-D convolution of several channels in f32 (stride 1, no padding), with two further forms: im2col, and row reuse."""

from typing import Any

import numpy as np

from costmodel.records import Config, Device, Problem, SearchSpace, TensorSpec, UserError
from costmodel.workloads import cpp_workload, form


def make_problem(*, B: int, C: int, H: int, W: int, O: int, R: int) -> Problem:  # noqa: E741 (the usual letter)
    """Images [B, C, H, W], filters [O, C, R, R], result [B, O, H-R+1, W-R+1]; R must not exceed H or W."""
    if min(B, C, H, W, O, R) < 1:
        raise UserError(f"got B={B},C={C},H={H},W={W},O={O},R={R}, expected sizes of at least 1; give positive sizes")
    if min(H, W) < R:
        raise UserError(f"got R={R},H={H},W={W}, expected a filter within the image; make R smaller or H and W larger")
    pixels = B * O * (H - R + 1) * (W - R + 1)
    return Problem(
        op="conv2d",
        inputs=(TensorSpec((B, C, H, W), "f32"), TensorSpec((O, C, R, R), "f32")),
        params=(("B", B), ("C", C), ("H", H), ("W", W), ("O", O), ("R", R)),
        flops=2 * pixels * C * R * R,
        bytes=4 * (B * C * H * W + O * C * R * R + pixels),
    )


def make_inputs(problem: Problem, seed: int) -> tuple[Any, ...]:
    rng = np.random.default_rng(seed)
    return tuple(rng.standard_normal(spec.shape, dtype=np.float32) for spec in problem.inputs)


def reference(problem: Problem, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    images, filters = (array.astype(np.float64) for array in inputs)
    size = filters.shape[-1]
    rows, columns = images.shape[2] - size + 1, images.shape[3] - size + 1
    total = np.zeros((images.shape[0], filters.shape[0], rows * columns))
    for p in range(size):
        for q in range(size):
            shifted = images[:, :, p : p + rows, q : q + columns].reshape(*images.shape[:2], -1)
            total += filters[:, :, p, q] @ shifted
    return (total.reshape(*total.shape[:2], rows, columns).astype(np.float32),)


def fits_registers(config: Config, problem: Problem, device: Device) -> bool:
    """The block of sums leaves room among 32 vector registers for pixels; threads have a core each."""
    return config["OB"] * config["WV"] * config.get("RY", 1) <= 24 and config["THREADS"] <= device.num_units


def fits_registers_im2col(config: Config, problem: Problem, device: Device) -> bool:
    return config["MR"] * config["NV"] <= 24 and config["THREADS"] <= device.num_units


WORKLOAD = cpp_workload(
    __file__,
    space=SearchSpace.of(
        fits_registers,
        LANES=(4, 8, 16),
        OB=(1, 2, 4, 8),
        WV=(1, 2, 4),
        ROWS_OUTER=(0, 1),
        SPECIAL=(0, 1),
        THREADS=(1, 2),
    ),
    default=Config.of(LANES=8, OB=2, WV=1, ROWS_OUTER=0, SPECIAL=0, THREADS=1),
    make_problem=make_problem,
    problems={
        "early": {"B": 1, "C": 3, "H": 226, "W": 226, "O": 24, "R": 3},  # few channels, long rows
        "late": {"B": 5, "C": 48, "H": 16, "W": 16, "O": 40, "R": 3},  # many channels, rows of 14
        "five": {"B": 1, "C": 8, "H": 100, "W": 100, "O": 18, "R": 5},
        "pointwise": {"B": 1, "C": 64, "H": 64, "W": 64, "O": 72, "R": 1},  # a matrix product in disguise
        "photo": {"B": 1, "C": 3, "H": 500, "W": 600, "O": 3, "R": 3},  # much data, little work
        "odd": {"B": 7, "C": 7, "H": 61, "W": 83, "O": 11, "R": 3},  # tails everywhere
    },
    make_inputs=make_inputs,
    reference=reference,
    tolerance=1e-4,
)

FORMS = {
    "im2col": form(
        WORKLOAD,
        "im2col",
        space=SearchSpace.of(
            fits_registers_im2col,
            LANES=(4, 8, 16),
            MR=(1, 2, 4, 8),
            NV=(1, 2, 4),
            TN=(64, 256, 1024),
            BY_ROWS=(0, 1),
            THREADS=(1, 2),
        ),
        default=Config.of(LANES=8, MR=2, NV=2, TN=256, BY_ROWS=0, THREADS=1),
    ),
    "rows": form(
        WORKLOAD,
        "rows",
        space=SearchSpace.of(
            fits_registers,
            LANES=(4, 8, 16),
            OB=(1, 2),
            RY=(1, 2, 3, 4),
            WV=(1, 2, 4),
            BANDS_OUTER=(0, 1),
            THREADS=(1, 2),
        ),
        default=Config.of(LANES=8, OB=1, RY=2, WV=1, BANDS_OUTER=0, THREADS=1),
    ),
}
