"""A process in which CUDA kernels run as C++, by cuda_emulation.h: requests as JSON lines in, largest errors out.

Each request runs in a child, so a kernel that faults is an answer. Every array ends at a page that nobody may touch.
"""

import ctypes
import functools
import json
import mmap
import os
import re
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

import torch
from answers import error

from costmodel import tensors, workloads
from costmodel.measure.cuda_launch import Arguments
from costmodel.records import Config

FLAGS = ("-std=c++17", "-O1", "-w", "-shared", "-fPIC", "-fno-strict-aliasing", "-fsanitize=undefined",
         "-fno-sanitize-recover=undefined")  # fmt: skip
DYNAMIC_SHARED = r"extern __shared__ (?:__align__\(\d+\) )?(\w+) (\w+)\[\];"
ENTRY = r"__global__[^;{]*?\bvoid\s+(?:__launch_bounds__\([^)]*\)\s*)?(\w+)\s*\("
ALIGNMENT, GARBAGE = 16, 0xCB


def build(source: str, config: dict, folder: str) -> ctypes.CDLL:
    """The header comes first, so the config's macros touch the kernel's text alone."""
    header = Path(__file__).with_name("cuda_emulation.h")
    macros = [f"#define {name} {value}" for name, value in config.items()]
    kernel = re.sub(DYNAMIC_SHARED, r"EMULATED_DYNAMIC_SHARED(\1, \2);", source)
    text = [f'#include "{header}"', *macros, '#line 1 "kernel.cu"', kernel]
    for name in re.findall(ENTRY, source):
        call = f"emulation::start({name}, arguments, count, shape);"
        text.append(f'extern "C" void start_{name}(void** arguments, int count, const unsigned* shape) {{ {call} }}')
    library = f"{folder}/kernel.so"
    command = ["g++", *FLAGS, "-x", "c++", "-", "-o", library]
    done = subprocess.run(command, input="\n".join(text), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[:2000]
    return ctypes.CDLL(library)


class Fenced:
    """A tensor of garbage whose last byte (but for alignment) is the last before a page that faults."""

    def __init__(self, spec):
        dtype = tensors.dtype_of(spec.dtype)
        count = functools.reduce(lambda a, b: a * b, spec.shape, 1)
        self.size = count * dtype.itemsize
        pages = -(-self.size // mmap.PAGESIZE) + 1
        self.memory = mmap.mmap(-1, pages * mmap.PAGESIZE)
        self.memory[:] = bytes([GARBAGE]) * len(self.memory)
        fence = (pages - 1) * mmap.PAGESIZE
        self.start = fence - -(-self.size // ALIGNMENT) * ALIGNMENT
        self.tensor = torch.frombuffer(self.memory, dtype=dtype, count=count, offset=self.start).reshape(spec.shape)
        address = ctypes.addressof(ctypes.c_char.from_buffer(self.memory)) + fence
        assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(address), mmap.PAGESIZE, 0) == 0
        self.fence = fence

    def check(self):
        around = self.memory[: self.start] + self.memory[self.start + self.size : self.fence]
        assert set(around) <= {GARBAGE}, "the kernel wrote beside an array"


def errors(kernel: str, sizes: dict, config: dict, replace: dict) -> list[float]:
    """max |got - expected| over the largest |expected|, per output. `replace` changes the kernel's text."""
    workload = workloads.load(kernel)
    problem = workload.make_problem(**sizes)
    source = workload.kernel.source
    for old, new in replace.items():
        assert source.count(old) >= 1, f"the text has no {old!r}"
        source = source.replace(old, new)
    chosen = Config.of(**{**workload.default.as_dict(), **config})
    with tempfile.TemporaryDirectory() as folder:
        library = build(source, chosen.as_dict(), folder)
    given = workload.make_inputs(problem, 0)
    inputs = [Fenced(spec) for spec in problem.inputs]
    outputs = [Fenced(spec) for spec in workload.outputs(problem)]
    for fenced, values in zip(inputs, given, strict=True):
        fenced.tensor.copy_(values)
    launches = workload.launch(problem, chosen, tuple(x.tensor for x in inputs), tuple(y.tensor for y in outputs))
    for launch in launches:
        arguments = Arguments(launch.args)
        shape = [*(*launch.grid, 1, 1)[:3], *(*launch.block, 1, 1)[:3], launch.shared_bytes]
        start = getattr(library, f"start_{launch.entry}")
        start(ctypes.c_void_p(arguments.address), len(launch.args), (ctypes.c_uint * 7)(*shape))
    for fenced in (*inputs, *outputs):
        fenced.check()
    same = all(torch.equal(x.tensor.view(torch.uint8), v.view(torch.uint8)) for x, v in zip(inputs, given, strict=True))
    assert same, "the kernel wrote to its inputs"
    expected = workload.reference(problem, given)
    return [error(y.tensor, right) for y, right in zip(outputs, expected, strict=True)]


def in_child(request: dict) -> dict:
    """The answer of a forked child, or how it ended and what it said."""
    with tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as answer:
        child = os.fork()
        if child == 0:
            os.dup2(said.fileno(), 2)
            try:
                result = {"errors": errors(**request)}
            except Exception:
                result = {"failed": traceback.format_exc()}
            os.write(answer.fileno(), json.dumps(result).encode())
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        said.seek(0)
        answer.seek(0)
        if status == 0:
            return json.loads(answer.read())
        how = f"signal {-status}, a fence or a wild address" if status < 0 else f"exit code {status}"
        return {"failed": f"{how}: {said.read().decode(errors='replace')[-2000:]}"}


if __name__ == "__main__":
    torch.set_num_threads(1)
    for line in sys.stdin:
        print(json.dumps(in_child(json.loads(line))), flush=True)
