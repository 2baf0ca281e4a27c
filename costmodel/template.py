"""`costmodel new`: a kernel that already runs, to be filled in."""

from __future__ import annotations

from pathlib import Path

from costmodel.records import UserError

_CPP = """\
// {name}: y = a * x + y over n elements, in chunks of CHUNK.
// Every parameter of the search space is a macro here. OPT, FASTMATH and VECTOR_BITS also set compiler flags.
// buffers: the inputs in order, then the outputs in order. sizes: the problem's sizes in order.
extern "C" void run(void* const* buffers, const long long* sizes) {{
    const float* __restrict x = static_cast<const float*>(buffers[0]);
    const float* __restrict y = static_cast<const float*>(buffers[1]);
    float* __restrict out = static_cast<float*>(buffers[2]);
    const long long n = sizes[0];
    constexpr int ways = UNROLL;  // the pragma below takes no macro
#pragma omp parallel for num_threads(THREADS)
    for (long long begin = 0; begin < n; begin += CHUNK) {{
        const long long end = begin + CHUNK < n ? begin + CHUNK : n;
#pragma GCC unroll ways
        for (long long i = begin; i < end; ++i) out[i] = 2.0f * x[i] + y[i];
    }}
}}
"""

_PY = '''\
"""{name}: what can be tuned, on which sizes, and what the right answer is."""

import numpy as np

from costmodel.records import Config, Problem, SearchSpace, TensorSpec
from costmodel.workloads import cpp_workload


def make_problem(n):
    tensor = TensorSpec((n,), "f32")
    return Problem("{name}", (tensor, tensor), (("n", n),), flops=2 * n, bytes=12 * n)


def make_inputs(problem, seed):
    rng = np.random.default_rng(seed)
    n = problem["n"]
    return rng.standard_normal(n, dtype=np.float32), rng.standard_normal(n, dtype=np.float32)


def reference(problem, inputs):
    x, y = inputs
    return (2 * x + y,)


def is_valid(config, problem, device):
    return config["THREADS"] <= device.num_units and config["UNROLL"] <= config["CHUNK"]


WORKLOAD = cpp_workload(
    __file__,
    space=SearchSpace.of(
        is_valid,
        CHUNK=[256, 1024, 4096, 16384],
        UNROLL=[1, 2, 4, 8],
        OPT=[2, 3],
        VECTOR_BITS=[128, 256, 512],
        THREADS=[1, 2],
    ),
    default=Config.of(CHUNK=1024, UNROLL=1, OPT=2, VECTOR_BITS=256, THREADS=1),
    make_problem=make_problem,
    problems={{"large": dict(n=4_000_000), "small": dict(n=100_003)}},
    make_inputs=make_inputs,
    reference=reference,
    tolerance=1e-5,
)
'''


def write_template(file: Path) -> list[Path]:
    """Write NAME.cpp and NAME.py; refuses to overwrite either."""
    if file.suffix != ".cpp" or not file.stem.isidentifier() or "__" in file.stem:
        raise UserError(f"got {file}, expected NAME.cpp with a plain name such as axpy.cpp")
    paths = [file, file.with_suffix(".py")]
    for path in paths:
        if path.exists():
            raise UserError(f"{path} exists already; choose another name or move it away")
    if not file.parent.is_dir():
        raise UserError(f"no folder {file.parent}; make it first")
    for path, text in zip(paths, (_CPP, _PY), strict=True):
        path.write_text(text.format(name=file.stem))
    return paths
