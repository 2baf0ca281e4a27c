"""Every shipped C++ kernel and form keeps the convention: its space, its problems, and right answers on odd sizes."""

import ctypes
import os
import random
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from costmodel.records import Config, Device, Problem, UserError, Workload
from costmodel.workloads import load, names, parse_problem

NAMES = names("cpp")
DEVICE = Device("two cores", "cpu", "any", "x86-64", 2, 2300.0, (("f32", 0.29),), 50.0, 2 << 20)
FLAGS = ("-std=c++17", "-fopenmp", "-march=native", "-shared", "-fPIC")
MEANT_AS_FLAGS = {
    "OPT": lambda value: [f"-O{value}"],
    "FASTMATH": lambda value: ["-ffast-math"] if value else [],
    "VECTOR_BITS": lambda value: [f"-mprefer-vector-width={value}"],
}


@pytest.fixture(scope="module")
def compiler() -> str:
    for name in (os.environ.get("CXX"), "c++", "g++"):
        if name and shutil.which(name):
            return name
    pytest.skip("no C++ compiler")


def small(workload: Workload) -> Problem:
    """The first listed problem with every size cut to 13, or to the next limit where sizes must suit each other."""
    first = next(iter(workload.problems.values()))
    for limit in (13, 12, 16):
        sizes = {name: min(value, limit) for name, value in first.params}
        try:
            return workload.make_problem(**sizes)
        except UserError:
            continue
    raise AssertionError(f"{workload.kernel.name} takes no small sizes")


def build(compiler: str, config: Config, folder: Path) -> ctypes.CDLL:
    source, library = folder / "kernel.cpp", folder / f"kernel-{abs(hash(config))}.so"
    flags = ["-O2"]
    for name, value in config.params:
        flags += [f"-D{name}={value}", *MEANT_AS_FLAGS.get(name, lambda _: [])(value)]
    done = subprocess.run([compiler, *FLAGS, *flags, str(source), "-o", str(library)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return ctypes.CDLL(str(library))


def call(library: ctypes.CDLL, problem: Problem, inputs: tuple, expected: tuple) -> list[np.ndarray]:
    """The outputs of one call; they start as garbage, with a guard behind each that must survive."""
    guard = 64
    raw = [np.full(array.nbytes + guard, 0xCB, dtype=np.uint8) for array in expected]
    pointers = [array.ctypes.data for array in (*inputs, *raw)]
    sizes = [value for _, value in problem.params]
    library.run((ctypes.c_void_p * len(pointers))(*pointers), (ctypes.c_longlong * len(sizes))(*sizes))
    for buffer in raw:
        assert (buffer[-guard:] == 0xCB).all(), "written past the end"
    return [buffer[:-guard].view(array.dtype).reshape(array.shape) for buffer, array in zip(raw, expected, strict=True)]


def error_of(got: np.ndarray, expected: np.ndarray) -> float:
    """Largest error as a share of the largest expected magnitude; integers must be equal."""
    if expected.dtype.kind in "iu":
        return 0.0 if np.array_equal(got, expected) else float("inf")
    if np.array_equal(got, expected):
        return 0.0
    error = np.abs(got.astype(np.float64) - expected).max() / np.abs(expected).max()
    return float(error) if np.isfinite(error) else float("inf")


@pytest.mark.parametrize("name", NAMES)
def test_space_and_problems(name: str) -> None:
    workload = load(name)
    assert len(workload.problems) >= 4
    assert len({problem.params for problem in workload.problems.values()}) == len(workload.problems)
    for problem in workload.problems.values():
        configs = list(workload.space.configs(problem, DEVICE))
        assert 250 <= len(configs) <= 700
        assert workload.default in configs
        assert problem.flops > 0
        assert problem.bytes >= sum(4 * np.prod(spec.shape) for spec in problem.inputs if spec.dtype == "f32")
        assert workload.make_problem(**dict(problem.params)) == problem
    one_core = Device("one core", "cpu", "any", "x86-64", 1, 2300.0, (("f32", 0.15),), 50.0, 2 << 20)
    first = next(iter(workload.problems.values()))
    assert {config["THREADS"] for config in workload.space.configs(first, one_core)} == {1}


@pytest.mark.parametrize("name", NAMES)
def test_text_uses_every_parameter_and_no_header(name: str) -> None:
    workload = load(name)
    source = workload.kernel.source or ""
    assert "#include" not in source
    unused = {parameter for parameter, _ in workload.space.params if parameter not in source}
    assert unused <= set(MEANT_AS_FLAGS)


@pytest.mark.parametrize("name", NAMES)
def test_sizes_that_a_user_gives_must_be_positive(name: str) -> None:
    workload = load(name)
    for size, _ in next(iter(workload.problems.values())).params:
        assert parse_problem(workload, f"{size}=16")[size] == 16
        with pytest.raises(UserError, match="expected"):
            parse_problem(workload, f"{size}=0")


@pytest.mark.parametrize("name", NAMES)
def test_small_odd_problem(name: str, compiler: str, tmp_path: Path) -> None:
    workload = load(name)
    problem = small(workload)
    inputs = workload.make_inputs(problem, 7)
    before = [array.copy() for array in inputs]
    expected = workload.reference(problem, inputs)
    assert [array.shape for array in inputs] == [spec.shape for spec in problem.inputs]
    assert all(array.flags.c_contiguous for array in (*inputs, *expected))
    configs = list(workload.space.configs(problem, DEVICE))
    chosen = [workload.default, *random.Random(name).sample(configs, 2)]
    (tmp_path / "kernel.cpp").write_text(workload.kernel.source or "")
    with ThreadPoolExecutor() as pool:
        libraries = list(pool.map(lambda config: build(compiler, config, tmp_path), chosen))
    for config, library in zip(chosen, libraries, strict=True):
        outputs = call(library, problem, inputs, expected)
        for got, right in zip(outputs, expected, strict=True):
            assert error_of(got, right) <= workload.tolerance, str(config)
    assert all(np.array_equal(array, copy) for array, copy in zip(inputs, before, strict=True))


def test_references_agree_with_torch() -> None:
    """The references themselves, against somebody else's definition of the same operation."""
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional

    def both(name: str, **sizes: int) -> tuple[list, np.ndarray]:
        workload = load(name)
        problem = workload.make_problem(**sizes)
        inputs = workload.make_inputs(problem, 3)
        return [torch.from_numpy(array) for array in inputs], workload.reference(problem, inputs)[0]

    (x, w), got = both("conv2d", B=2, C=3, H=9, W=7, O=4, R=3)
    np.testing.assert_allclose(got, functional.conv2d(x, w).numpy(), rtol=1e-4, atol=1e-5)
    (q, k, v), got = both("attention", H=3, SQ=5, SK=11, D=7)
    expected = functional.scaled_dot_product_attention(q, k, v)
    np.testing.assert_allclose(got, expected.numpy(), rtol=1e-4, atol=1e-5)
    (x, gain, bias), got = both("layer_norm", ROWS=5, COLS=11)
    np.testing.assert_allclose(got, functional.layer_norm(x, (11,), gain, bias).numpy(), rtol=1e-4, atol=1e-5)
    (x, w1, w2), got = both("mlp", T=3, D=5, H=11, O=7)
    expected = functional.gelu(x @ w1, approximate="tanh") @ w2
    np.testing.assert_allclose(got, expected.numpy(), rtol=1e-4, atol=1e-5)


def test_convolution_refuses_a_filter_beyond_the_image() -> None:
    with pytest.raises(UserError, match="R=5"):
        load("conv2d").make_problem(B=1, C=1, H=4, W=9, O=1, R=5)
