"""2-D convolution, channels last, as a matrix product that never builds its left matrix (implicit GEMM).

Rows are output places, columns output channels; the depth runs over the filter's rows, columns and input channels.
"""

import torch
import triton
import triton.language as tl

from costmodel import tensors
from costmodel.records import Config, Device, Launch, Problem, SearchSpace, TensorSpec, UserError
from costmodel.workloads import gpu_workload


@triton.jit
def conv2d_blocks(
    x_ptr, w_ptr, y_ptr, images, height, width, channels, out_height, out_width, filters, stride, pad,
    R: tl.constexpr, S: tl.constexpr, WHOLE_STEPS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
):  # fmt: skip
    places, depth = images * out_height * out_width, R * S * channels
    blocks_m, blocks_n = tl.cdiv(places, BLOCK_M), tl.cdiv(filters, BLOCK_N)
    pid = tl.program_id(0)
    block_m, block_n = tl.swizzle2d(pid // blocks_n, pid % blocks_n, blocks_m, blocks_n, GROUP_M)
    place = block_m * BLOCK_M + tl.arange(0, BLOCK_M)
    image = place // (out_height * out_width)
    top = place // out_width % out_height * stride - pad
    left = place % out_width * stride - pad
    n = block_n * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    image_ptr = x_ptr + image.to(tl.int64) * height * width * channels
    y = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, depth, BLOCK_K):
        if WHOLE_STEPS:  # a step stays in one tap of the filter: one division for all of it
            tap = start // channels
            row, column = top + tap // S, left + tap % S
            offset = ((row * width + column) * channels)[:, None] + (start % channels + k)[None, :]
            inside = ((place < places) & (row >= 0) & (row < height) & (column >= 0) & (column < width))[:, None]
            w_inside = (n < filters)[None, :]
        else:
            tap = (start + k) // channels
            row, column = top[:, None] + (tap // S)[None, :], left[:, None] + (tap % S)[None, :]
            offset = (row * width + column) * channels + ((start + k) % channels)[None, :]
            inside = (place < places)[:, None] & (start + k < depth)[None, :]
            inside = inside & (row >= 0) & (row < height) & (column >= 0) & (column < width)
            w_inside = (n < filters)[None, :] & (start + k < depth)[:, None]
        x = tl.load(image_ptr[:, None] + offset, mask=inside, other=0.0)
        w = tl.load(w_ptr + (start + k)[:, None] * filters + n[None, :], mask=w_inside, other=0.0)
        y = tl.dot(x, w, y)
    y_offset = place.to(tl.int64)[:, None] * filters + n[None, :]
    tl.store(y_ptr + y_offset, y.to(y_ptr.dtype.element_ty), mask=(place < places)[:, None] & (n < filters)[None, :])


def make_problem(
    *, images: int, height: int, width: int, channels: int, filters: int, R: int, S: int, stride: int = 1, pad: int = 0,
    dtype: str = "f16",
) -> Problem:  # fmt: skip
    """x [images, height, width, channels], w [R, S, channels, filters], y [images, out height, out width, filters]."""
    out = tuple((extent + 2 * pad - tap) // stride + 1 for extent, tap in ((height, R), (width, S)))
    if (
        dtype not in ("f16", "bf16")
        or min(out) < 1
        or max(images * out[0] * out[1], height * width * channels) >= 2**31
    ):
        raise UserError(
            f"got height={height},width={width},R={R},S={S},dtype={dtype}, "
            "expected a filter inside the padded image, an image and output places below 2^31, and dtype f16 or bf16"
        )
    specs = (TensorSpec((images, height, width, channels), dtype), TensorSpec((R, S, channels, filters), dtype))
    params = (
        ("images", images), ("height", height), ("width", width), ("channels", channels), ("filters", filters),
        ("R", R), ("S", S), ("stride", stride), ("pad", pad), ("dtype", dtype),
    )  # fmt: skip
    places = images * out[0] * out[1]
    size = 2 * (images * height * width * channels + R * S * channels * filters + places * filters)
    return Problem("conv2d", specs, params, flops=2 * places * filters * R * S * channels, bytes=size)


def outputs(problem: Problem) -> tuple[TensorSpec, ...]:
    images, height, width, _ = problem.inputs[0].shape
    R, S, _, filters = problem.inputs[1].shape
    rows, columns = (
        (extent + 2 * problem["pad"] - tap) // problem["stride"] + 1 for extent, tap in ((height, R), (width, S))
    )
    return (TensorSpec((images, rows, columns, filters), problem.dtype),)


def make_inputs(problem: Problem, seed: int) -> tuple[torch.Tensor, ...]:
    return tensors.normal(problem.inputs, seed)


def reference(problem: Problem, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """In true f32: a GPU's convolution would round its inputs to tf32 unless told not to."""
    x, w = inputs[0].float().permute(0, 3, 1, 2), inputs[1].float().permute(3, 2, 0, 1)
    with torch.backends.cudnn.flags(allow_tf32=False):
        y = torch.nn.functional.conv2d(x, w, stride=problem["stride"], padding=problem["pad"])
    return (y.permute(0, 2, 3, 1).contiguous().to(inputs[0].dtype),)


def launch(
    problem: Problem, config: Config, inputs: tuple[torch.Tensor, ...], outputs: tuple[torch.Tensor, ...]
) -> list[Launch]:
    (x, w), (y,) = inputs, outputs
    images, height, width, channels = x.shape
    _, out_height, out_width, filters = y.shape
    sizes = (images, height, width, channels, out_height, out_width, filters, problem["stride"], problem["pad"])
    places = images * out_height * out_width
    grid = (triton.cdiv(places, config["BLOCK_M"]) * triton.cdiv(filters, config["BLOCK_N"]),)
    settings = {
        **config.as_dict(), "R": w.shape[0], "S": w.shape[1], "WHOLE_STEPS": channels % config["BLOCK_K"] == 0
    }  # fmt: skip
    return [Launch(conv2d_blocks, grid, (x, w, y, *sizes), settings)]


def fits(config: Config, problem: Problem, device: Device) -> bool:
    """4 to 256 accumulators a thread (the last spill), and stages in up to 5/4 of a unit's shared memory."""
    block_m, block_n = config["BLOCK_M"], config["BLOCK_N"]
    stages = 2 * config["num_stages"] * (block_m + block_n) * config["BLOCK_K"]
    accumulators = block_m * block_n / (32 * config["num_warps"])
    return 4 <= accumulators <= 256 and stages <= 1.25 * dict(device.details).get("shared_bytes_per_unit", 1 << 16)


WORKLOAD = gpu_workload(
    __file__,
    space=SearchSpace.of(
        fits, BLOCK_M=(32, 64, 128, 256), BLOCK_N=(32, 64, 128, 256), BLOCK_K=(16, 32, 64, 128), GROUP_M=(1, 8),
        num_warps=(4, 8), num_stages=(2, 3, 4),
    ),
    default=Config.of(BLOCK_M=128, BLOCK_N=64, BLOCK_K=64, GROUP_M=8, num_warps=8, num_stages=3),
    make_problem=make_problem,
    problems={
        # ResNet-50: its usual 3x3, the same where the image is small and channels are many, and a 1x1 that widens.
        "resnet_3x3": {
            "images": 64, "height": 56, "width": 56, "channels": 64, "filters": 64, "R": 3, "S": 3, "pad": 1,
        },
        "resnet_deep": {
            "images": 64, "height": 7, "width": 7, "channels": 512, "filters": 512, "R": 3, "S": 3, "pad": 1,
        },
        "resnet_1x1": {
            "images": 64, "height": 28, "width": 28, "channels": 128, "filters": 512, "R": 1, "S": 1,
        },
        # Its first layer: three channels, so that a step takes in several taps, and stride 2.
        "resnet_stem": {
            "images": 64, "height": 224, "width": 224, "channels": 3, "filters": 64, "R": 7, "S": 7, "stride": 2,
            "pad": 3,
        },
        # A diffusion model's U-Net halves its image.
        "unet_down": {
            "images": 8, "height": 64, "width": 64, "channels": 320, "filters": 640, "R": 3, "S": 3, "stride": 2,
            "pad": 1, "dtype": "bf16",
        },
        # Patches of a vision transformer: stride as wide as the filter, each place read once.
        "patches": {
            "images": 64, "height": 224, "width": 224, "channels": 3, "filters": 768, "R": 16, "S": 16, "stride": 16,
        },
    },
    make_inputs=make_inputs,
    outputs=outputs,
    reference=reference,
    launch=launch,
    tolerance=8e-3,  # one step of bf16 at the largest value
)  # fmt: skip
