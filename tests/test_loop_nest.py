"""The generator of loop nests: deterministic, all different, and each text computes what its reference computes."""

import ctypes
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from costmodel.records import Config, Device, Problem, UserError, Workload
from costmodel.workloads import load, load_module, names, shipped

ONE_CORE = Device("one core", "cpu", "any", "x86-64", 1, 2300.0, (("f32", 0.15),), 25.0, 2 << 20)
TWO_CORES = Device("two cores", "cpu", "any", "x86-64", 2, 2300.0, (("f32", 0.29),), 50.0, 2 << 20)
FLAG_OF = {
    "OPT": lambda value: [f"-O{value}"],
    "FASTMATH": lambda value: ["-ffast-math"] if value else [],
    "VECTOR_BITS": lambda value: [f"-mprefer-vector-width={value}"],
}
MANY = [load(f"loop_nest:{number}") for number in range(400)]


def first_problem(workload: Workload) -> Problem:
    return workload.problems["small"]


def structure(source: str) -> str:
    """The text without comments, its names replaced in order of appearance."""
    names_seen: dict[str, str] = {}
    kept = {"const", "long", "float", "double", "int", "for", "static", "inline", "return", "if", "elif", "else"}
    text = re.sub(r"\s+", " ", re.sub(r"//.*", "", source))
    return re.sub(
        r"[A-Za-z_]\w*",
        lambda match: match[0] if match[0] in kept else names_seen.setdefault(match[0], f"v{len(names_seen)}"),
        text,
    )


def test_four_hundred_kernels_differ_in_structure() -> None:
    assert len({workload.kernel.identity for workload in MANY}) == len(MANY)
    assert len({structure(workload.kernel.source or "") for workload in MANY}) == len(MANY)
    assert max(len(workload.kernel.source or "") for workload in MANY) <= 3000


def test_the_kinds_that_are_promised_all_occur() -> None:
    sources = [workload.kernel.source or "" for workload in MANY]
    for piece in ("double*", "int*", "#pragma omp parallel", "#pragma omp simd", "reduction(max", "TILE", "ORDER == 2",
                  "_lanes[ACC]", "#if FUSE", "__builtin_exp", "[=](long", "sum over", "min over"):  # fmt: skip
        assert any(piece in source for source in sources), piece
    depths = {source.split("\n")[0].split(" in ")[0] for source in sources}
    assert depths == {"// one loop", "// 2 nested loops", "// 3 nested loops", "// 4 nested loops"}


def test_a_number_is_always_the_same_kernel() -> None:
    generate = load_again()
    for number in (0, 17, 399):
        again, known = generate(number), MANY[number]
        assert again.kernel == known.kernel
        assert again.problems == known.problems
        assert again.default == known.default


def load_again():
    """The generator as a fresh process would see it: executed anew, under another name."""
    import importlib.util

    spec = importlib.util.spec_from_file_location("loop_nest_again", shipped("kernels") / "cpp" / "loop_nest.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.generate


def test_its_path_loads_it_again() -> None:
    for number in (3, 250):
        workload = load(f"loop_nest:{number}")
        assert workload.kernel.name == f"loop_nest:{number}"
        assert load(workload.path).kernel == workload.kernel
        assert load(str(workload.path)).problems == workload.problems


def test_generators_are_not_listed_as_kernels() -> None:
    assert not [name for name in names("cpp") if name.startswith("loop_nest")]


@pytest.mark.parametrize("device", [ONE_CORE, TWO_CORES])
def test_spaces_are_small_and_hold_their_default(device: Device) -> None:
    for workload in MANY:
        configs = list(workload.space.configs(first_problem(workload), device))
        assert 4 <= len(configs) <= 40
        assert workload.default in configs
        assert all(config.get("THREADS", 1) <= device.num_units for config in configs)
        meant = {name for name, _ in workload.space.params} - set(FLAG_OF)
        assert all(re.search(rf"\b{name}\b", workload.kernel.source or "") for name in meant)


def test_problems_contrast_and_state_honest_traffic() -> None:
    for workload in MANY:
        assert list(workload.problems) == ["small", "large", "odd"]
        small, large = workload.problems["small"], workload.problems["large"]
        assert large.bytes > 1.2 * small.bytes or large.flops > 1.2 * small.flops
        for problem in workload.problems.values():
            width = {"f32": 4, "f64": 8, "i32": 4}
            read = sum(int(np.prod(spec.shape)) * width[spec.dtype] for spec in problem.inputs)
            assert read < problem.bytes <= 33 << 20


def test_sizes_must_be_positive_and_known() -> None:
    workload = MANY[0]
    sizes = {name: int(value) for name, value in first_problem(workload).params}
    name = next(iter(sizes))
    with pytest.raises(UserError, match="expected positive"):
        workload.make_problem(**{**sizes, name: 0})
    with pytest.raises(UserError, match="expected positive"):
        workload.make_problem(**sizes, nonsense=3)


@pytest.fixture(scope="module")
def compiler() -> str:
    for name in (os.environ.get("CXX"), "c++", "g++", "clang++"):
        if name and shutil.which(name):
            return name
    pytest.skip("no C++ compiler")


def run(compiler: str, workload: Workload, config: Config, problem: Problem, folder: Path, inputs: tuple) -> list:
    """The outputs of one call of a freshly compiled variant; they start as garbage."""
    source, library = folder / "nest.cpp", folder / f"nest-{workload.kernel.identity}-{abs(hash(config))}.so"
    source.write_text(workload.kernel.source or "")
    flags = [
        flag for name, value in config.params for flag in (f"-D{name}={value}", *FLAG_OF.get(name, lambda _: [])(value))
    ]
    command = [compiler, "-std=c++17", "-O2", "-fopenmp", "-march=native", "-shared", "-fPIC", *flags]
    done = subprocess.run([*command, str(source), "-o", str(library)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    outputs = [np.full_like(array, 113) for array in workload.reference(problem, inputs)]
    pointers = [array.ctypes.data for array in (*inputs, *outputs)]
    sizes = [value for _, value in problem.params]
    ctypes.CDLL(str(library)).run(
        (ctypes.c_void_p * len(pointers))(*pointers), (ctypes.c_longlong * len(sizes))(*sizes)
    )
    return outputs


@pytest.mark.parametrize("number", range(20, 32))
def test_text_and_reference_agree(number: int, compiler: str, tmp_path: Path) -> None:
    """Two independent writers of one plan, C++ and NumPy, on odd sizes and on a size of one."""
    workload = MANY[number]
    names_of_sizes = [name for name, _ in first_problem(workload).params]
    configs = list(workload.space.configs(first_problem(workload), TWO_CORES))
    for config, cycle in ((workload.default, (11, 5, 7)), (configs[(number * 7) % len(configs)], (19, 1, 6))):
        problem = workload.make_problem(**{name: cycle[i % 3] for i, name in enumerate(names_of_sizes)})
        inputs = workload.make_inputs(problem, number)
        before = [array.copy() for array in inputs]
        outputs = run(compiler, workload, config, problem, tmp_path, inputs)
        for got, right in zip(outputs, workload.reference(problem, inputs), strict=True):
            error = np.abs(got.astype(np.float64) - right).max() / max(np.abs(right.astype(np.float64)).max(), 1e-30)
            assert error <= workload.tolerance, f"{config} on {problem}"
        assert all(np.array_equal(array, copy) for array, copy in zip(inputs, before, strict=True))


def test_reference_of_a_product_is_einsum() -> None:
    """The reference itself, against NumPy's own contraction: out[j, i] = sum over k of left[k, i] * right[j, k]."""
    plan = load_module(shipped("kernels") / "cpp" / "loop_nest_plan.py")
    arrays = tuple(
        plan.Array(name, "f32", tuple(plan.Axis(dim) for dim in dims))
        for name, dims in (("left", (2, 0)), ("right", (1, 2)), ("out", (1, 0)))
    )
    tree = ("mul", ("load", 0, (0, 0)), ("load", 1, (0, 0)))
    product = plan.Plan(3, "f32", arrays, 2, (plan.Statement(2, (2,), "sum", tree),), ("N", "M", "K"), ("i", "j", "k"))
    rng = np.random.default_rng(0)
    left, right = (rng.standard_normal(shape).astype(np.float32) for shape in ((7, 5), (6, 7)))
    problem = Problem("product", (), (("N", 5), ("M", 6), ("K", 7)), 0, 0)
    (got,) = plan.reference(product, problem, (left, right))
    assert np.allclose(got, np.einsum("ki,jk->ji", left, right), rtol=1e-5, atol=1e-6)


def test_reference_of_a_shifted_gather() -> None:
    """out[i] = max(table[idx[i]], src[2 * i + 1]), by a plain loop."""
    plan = load_module(shipped("kernels") / "cpp" / "loop_nest_plan.py")
    axes = {
        "src": plan.Axis(0, stride=2, halo=1),
        "idx": plan.Axis(0),
        "table": plan.Axis(0, index=1),
        "out": plan.Axis(0),
    }
    arrays = tuple(plan.Array(name, "i32", (axis,)) for name, axis in axes.items())
    tree = ("max", ("load", 2, (0,)), ("load", 0, (1,)))
    shifted = plan.Plan(1, "i32", arrays, 3, (plan.Statement(3, (), "", tree),), ("n", "slots"), ("i",))
    problem = Problem("shifted", (), (("n", 9), ("slots", 4)), 0, 0)
    src, idx, table = plan.make_inputs(shifted, problem, 5)
    assert (len(src), len(idx), len(table)) == (18, 9, 4)
    (got,) = plan.reference(shifted, problem, (src, idx, table))
    assert got.tolist() == [max(table[idx[i]], src[2 * i + 1]) for i in range(9)]
