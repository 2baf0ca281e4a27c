"""Every kernel of the ops compiles for GPUs that are not here: without spills, within the shared memory of a block."""

import json
import os
import subprocess
import sys

import pytest
import torch

# As `launches` has them.
KERNELS = ["forward_kernel", "backward_kernel", "backward_kernel", "loss_kernel", "step_kernel"]
SHARED_BYTES = {"sm_80": 163 << 10, "sm_90": 227 << 10}  # of a block at most (CUDA's programming guide)
# Each vocabulary for both architectures and in both types; 257 is the shipped grid's, 2048 the largest that ops take.
TARGETS = [
    ("sm_90", 32, "float32"), ("sm_90", 128, "bfloat16"), ("sm_90", 257, "float32"), ("sm_90", 512, "bfloat16"),
    ("sm_80", 32, "bfloat16"), ("sm_80", 128, "float32"), ("sm_80", 257, "bfloat16"), ("sm_80", 512, "float32"),
    ("sm_90", 2048, "float32"),
]  # fmt: skip


def launches(vocabulary, dtype):
    """Of all kernels over logits of one type, the backward one without soft targets and with them."""
    from costmodel.ops.numeric_loss import loss_kernel
    from costmodel.ops.numeric_rows import backward_kernel, forward_kernel, rows_launch
    from costmodel.ops.numeric_step import Step, step_launch

    count, states = 1000, 9

    def empty(*shape, dtype=torch.float32):
        return torch.empty(*shape, dtype=dtype, device="meta")

    z, whole = empty(count, vocabulary, dtype=dtype), empty(count, dtype=torch.int64)
    legal, value = empty(states, vocabulary, dtype=torch.bool), empty(states, vocabulary)
    args, column = (z, (whole, whole), (legal, value)), empty(count)
    soft, hard = (column, empty(vocabulary), 0.15), (None, None, 0.0)
    yield rows_launch(forward_kernel, *args, *soft, column, column)
    yield rows_launch(backward_kernel, *args, *hard, column, column, z)
    yield rows_launch(backward_kernel, *args, *soft, column, column, z)
    yield rows_launch(loss_kernel, *args, *soft, *[column] * 5, GRAD=True)
    uniform, next_state = empty(count, dtype=torch.float64), empty(states, vocabulary, dtype=torch.int64)
    out = Step(whole, column, uniform, whole, column)
    yield step_launch(z, whole, uniform, legal, value, next_state, 1.0, out)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """The facts of all kernels for all targets, from a process of its own: to compile for an absent GPU changes what
    Triton holds for the current one."""
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("triton")), "TRITON_INTERPRET": "0"}
    done = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(("arch", "vocabulary", "dtype"), TARGETS)
def test_every_kernel_fits_the_registers_and_the_shared_memory(compiled, arch, vocabulary, dtype):
    found = compiled[TARGETS.index((arch, vocabulary, dtype))]
    assert [each["name"] for each in found] == KERNELS
    for each in found:
        told = dict(each["facts"])
        frame = 8 if each["name"] == "step_kernel" else 0  # of a call: newer ptxas has float64 division out of line
        assert told["local_loads"] == told["local_stores"] == 0, (each["name"], told)
        assert told["stack_bytes"] <= frame, (each["name"], told)
        assert 0 < told["shared_bytes"] <= SHARED_BYTES[arch], (each["name"], told)
        assert told["tensor_ops"] == 0  # matrix products are made outside


def main():
    from costmodel.measure.triton_compile import TritonCompiler

    compiler = TritonCompiler()
    done = [compiler.launches(launches(vocabulary, getattr(torch, dtype)), arch) for arch, vocabulary, dtype in TARGETS]
    json.dump(done, sys.stdout)


if __name__ == "__main__":
    main()
