"""Cross entropy over a large vocabulary, with the gradient of the logits: online log-sum-exp, then a second read."""

import torch
import triton
import triton.language as tl

from costmodel import tensors
from costmodel.records import Config, Device, Launch, Problem, SearchSpace, TensorSpec, UserError
from costmodel.workloads import gpu_workload

IGNORED = tl.constexpr(-100)


@triton.jit
def cross_entropy_rows(
    logits_ptr, target_ptr, loss_ptr, gradient_ptr, vocabulary,
    BLOCK_N: tl.constexpr, BY_LANE: tl.constexpr, num_stages: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK_N)
    logits_ptr += row * vocabulary
    gradient_ptr += row * vocabulary
    target = tl.load(target_ptr + row)
    if target == IGNORED:
        for first in range(0, vocabulary, BLOCK_N):
            zero = tl.zeros([BLOCK_N], gradient_ptr.dtype.element_ty)
            tl.store(gradient_ptr + first + column, zero, mask=first + column < vocabulary)
        tl.store(loss_ptr + row, 0.0)
    else:
        if BY_LANE:  # every lane keeps its own maximum and sum: no exchange between threads until the end
            highest = tl.full([BLOCK_N], -1e30, tl.float32)
            totals = tl.zeros([BLOCK_N], tl.float32)
            for first in tl.range(0, vocabulary, BLOCK_N, num_stages=num_stages):
                known = first + column < vocabulary
                x = tl.load(logits_ptr + first + column, mask=known, other=-float("inf")).to(tl.float32)
                higher = tl.maximum(highest, x)
                totals = totals * tl.exp(highest - higher) + tl.exp(x - higher)
                highest = higher
            largest = tl.max(highest, 0)
            total = tl.sum(totals * tl.exp(highest - largest), 0)
        else:
            largest = -float("inf")
            total = 0.0
            for first in tl.range(0, vocabulary, BLOCK_N, num_stages=num_stages):
                known = first + column < vocabulary
                x = tl.load(logits_ptr + first + column, mask=known, other=-float("inf")).to(tl.float32)
                larger = tl.maximum(largest, tl.max(x, 0))
                total = total * tl.exp(largest - larger) + tl.sum(tl.exp(x - larger), 0)
                largest = larger
        log_sum = largest + tl.log(total)
        tl.store(loss_ptr + row, log_sum - tl.load(logits_ptr + target).to(tl.float32))
        for first in tl.range(0, vocabulary, BLOCK_N, num_stages=num_stages):
            known = first + column < vocabulary
            x = tl.load(logits_ptr + first + column, mask=known, other=0.0).to(tl.float32)
            gradient = tl.exp(x - log_sum) - (first + column == target).to(tl.float32)
            tl.store(gradient_ptr + first + column, gradient.to(gradient_ptr.dtype.element_ty), mask=known)


def make_problem(*, rows: int, vocabulary: int, dtype: str = "bf16") -> Problem:
    """logits and their gradient (of the sum of the losses) are [rows, vocabulary]; target i32, loss f32 [rows]."""
    if vocabulary < 2 or rows < 1:
        raise UserError(f"got rows={rows},vocabulary={vocabulary}, expected rows from 1 and vocabulary from 2")
    logits, target = TensorSpec((rows, vocabulary), dtype), TensorSpec((rows,), "i32")
    moved = 2 * tensors.dtype_of(dtype).itemsize * rows * vocabulary + 8 * rows
    params = (("rows", rows), ("vocabulary", vocabulary), ("dtype", dtype))
    return Problem("cross_entropy", (logits, target), params, flops=6 * rows * vocabulary, bytes=moved)


def make_inputs(problem: Problem, seed: int) -> tuple[torch.Tensor, ...]:
    """A sixteenth of the targets is ignored, as padding is."""
    (logits,) = tensors.normal(problem.inputs[:1], seed)
    rows, vocabulary = logits.shape
    generator = torch.Generator(torch.get_default_device()).manual_seed(seed + 1)
    target = torch.randint(vocabulary, (rows,), generator=generator, dtype=torch.int32)
    padding = torch.randint(16, (rows,), generator=generator) == 0
    return logits, torch.where(padding, IGNORED.value, target)


def outputs_of(problem: Problem) -> tuple[TensorSpec, ...]:
    return TensorSpec(problem.inputs[1].shape, "f32"), problem.inputs[0]


def reference(problem: Problem, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    logits, target = inputs[0].float(), inputs[1].long()
    loss = torch.nn.functional.cross_entropy(logits, target, ignore_index=IGNORED.value, reduction="none")
    gradient = torch.softmax(logits, -1)
    kept = target != IGNORED.value
    rows = torch.arange(len(target), device=target.device)
    gradient[rows[kept], target[kept]] -= 1
    return loss, (gradient * kept[:, None]).to(inputs[0].dtype)


def launch(
    problem: Problem, config: Config, inputs: tuple[torch.Tensor, ...], outputs: tuple[torch.Tensor, ...]
) -> list[Launch]:
    rows, vocabulary = inputs[0].shape
    return [Launch(cross_entropy_rows, (rows,), (*inputs, *outputs, vocabulary), config.as_dict())]


def is_valid(config: Config, problem: Problem, device: Device) -> bool:
    """From 1 to 128 values a thread, and a block no wider than the row needs."""
    values = config["BLOCK_N"] / (32 * config["num_warps"])
    return 1 <= values <= 128 and config["BLOCK_N"] <= triton.next_power_of_2(problem["vocabulary"])


WORKLOAD = gpu_workload(
    __file__,
    space=SearchSpace.of(
        is_valid,
        BLOCK_N=(256, 512, 1024, 2048, 4096, 8192, 16384, 32768),
        BY_LANE=(0, 1),
        num_warps=(1, 2, 4, 8, 16, 32),
        num_stages=(1, 2, 3, 4),
    ),
    default=Config.of(BLOCK_N=1024, BY_LANE=0, num_warps=4, num_stages=2),
    make_problem=make_problem,
    problems={
        "llama3": {"rows": 2048, "vocabulary": 128256, "dtype": "bf16"},  # a row is 250 kB: the second read meets L2
        "gpt2": {"rows": 4096, "vocabulary": 50257, "dtype": "f16"},  # an odd width: no row but the first is aligned
        "bert": {"rows": 4096, "vocabulary": 30522, "dtype": "f32"},  # one block of 32768 holds a row
        "classes": {"rows": 65536, "vocabulary": 1000, "dtype": "f32"},  # image labels: many short rows
        "few": {"rows": 64, "vocabulary": 151936, "dtype": "bf16"},  # fewer rows than SMs
    },
    make_inputs=make_inputs,
    outputs=outputs_of,
    reference=reference,
    launch=launch,
    tolerance=4e-3,  # half a unit in the last place of bf16
)
