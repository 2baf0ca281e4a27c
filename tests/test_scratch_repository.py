"""A pull request that slows a kernel, in a repository of its own: what its author sees with costmodel installed, pytest
and git, and nothing else. The plugin is found by its entry point, as in anybody's project.

The slow-down is eight passes for one and the threshold twice, so that no load makes a test fail.
"""

import os
import shutil
import subprocess
import sys
from importlib import metadata

import pytest

CXX = os.environ.get("CXX", "c++")
SCALE = """
extern "C" void run(void* const* buffers, const long long* sizes) {
    const float* x = static_cast<const float*>(buffers[0]);
    float* out = static_cast<float*>(buffers[1]);
    for (long long i = 0; i < sizes[0]; ++i) out[i] = 3.0f * x[i];
}
"""
TESTS = """
import ctypes
import subprocess
from pathlib import Path

N = 50_000
FLAGS = ["-O2", "-fopenmp", "-shared", "-fPIC", "-DCHUNK=1024", "-DUNROLL=1", "-DTHREADS=1"]


def built(name, folder):
    library = folder / f"{name}.so"
    subprocess.run(["CXX", *FLAGS, Path(__file__).with_name(f"{name}.cpp"), "-o", library], check=True)
    return ctypes.CDLL(str(library)).run


def buffers(count):
    arrays = [(ctypes.c_float * N)(*[1.0] * N) for _ in range(count)]
    return arrays, (ctypes.c_void_p * count)(*map(ctypes.addressof, arrays)), (ctypes.c_longlong * 1)(N)


def test_axpy(latency, tmp_path):
    run, (arrays, pointers, sizes) = built("axpy", tmp_path), buffers(3)
    latency(run, pointers, sizes)
    assert arrays[2][N - 1] == 3.0


def test_scale(latency, tmp_path):
    run, (arrays, pointers, sizes) = built("scale", tmp_path), buffers(2)
    latency(run, pointers, sizes)
    assert arrays[1][N - 1] == 3.0
"""


def plain_environment():
    """That of a shell: not of this test run, and not of a CI that it runs in."""
    mine = ("GITHUB_", "PYTEST_", "COSTMODEL_", "GIT_")
    return {name: value for name, value in os.environ.items() if not name.startswith(mine) and name != "PYTHONPATH"}


def run(folder, *command):
    return subprocess.run(command, cwd=folder, env=plain_environment(), capture_output=True, text=True, timeout=300)


def git(folder, *arguments):
    identity = ("-c", "user.name=n", "-c", "user.email=e@x", "-c", "commit.gpgsign=false")
    done = run(folder, "git", *identity, *arguments)
    assert done.returncode == 0, done.stderr


def gate(folder, tier, base, *options):
    asked = (f"--costmodel-gate={tier}", f"--costmodel-base={base}")
    return run(folder, sys.executable, "-m", "pytest", *asked, *options)


def measured(folder, base, *options, pairs):
    few = (f"--costmodel-pairs={pairs}", f"--costmodel-max-pairs={pairs}", "--costmodel-threshold=100%")
    return gate(folder, "measure", base, *few, *options)


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """main: a kernel of `costmodel new`, another one, tests; slower: eight passes in the first."""
    plugins = {point.value for point in metadata.entry_points(group="pytest11")}
    if "costmodel.pytest_plugin" not in plugins:
        pytest.skip("costmodel is not installed, only importable")
    if shutil.which(CXX) is None:
        pytest.skip(f"{CXX} is not installed")
    folder = tmp_path_factory.mktemp("project")
    new = run(folder, sys.executable, "-c", "from costmodel.cli import main; main()", "new", "axpy.cpp")
    assert new.returncode == 0, new.stderr
    (folder / "scale.cpp").write_text(SCALE)
    (folder / "test_kernels.py").write_text(TESTS.replace("CXX", CXX))
    (folder / ".gitignore").write_text("__pycache__/\n.pytest_cache/\n")
    git(folder, "init", "--quiet", "--initial-branch=main")
    git(folder, "add", "-A")
    git(folder, "commit", "--quiet", "-m", "kernels")
    git(folder, "checkout", "--quiet", "-b", "slower")
    text, loop = (folder / "axpy.cpp").read_text(), "        for (long long i = begin;"
    assert loop in text
    passes = "        for (volatile int pass = 0; pass < 8; pass = pass + 1)\n"
    text = text.replace("#pragma GCC unroll ways\n", "").replace(loop, passes + loop)
    (folder / "axpy.cpp").write_text(text)
    git(folder, "commit", "--quiet", "-a", "-m", "eight passes")
    return folder


def lines_of(done, verdict):
    return [line for line in done.stdout.splitlines() if line.startswith(verdict)]


def test_the_slower_kernel_fails_and_the_other_passes(repository):
    done = measured(repository, "main", pairs=6)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "FAILED test_kernels.py::test_axpy - Failed: regressed: measured" in done.stdout
    assert any("test_kernels.py::test_axpy" in line for line in lines_of(done, "regressed "))
    assert [line for line in lines_of(done, "ok ") if "test_kernels.py::test_scale" in line]
    assert "1 failed, 1 passed" in done.stdout


def test_the_same_commit_on_both_sides_is_ok(repository):
    done = measured(repository, "HEAD", "-k", "axpy", pairs=5)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(lines_of(done, "ok ")) == 1
    assert "1 passed" in done.stdout


def test_the_changed_kernel_is_priced_without_running_anything(repository):
    done = gate(repository, "predict", "main", "--costmodel-markdown=told.md")
    regressed = bool(lines_of(done, "regressed "))
    assert done.returncode == int(regressed), done.stdout + done.stderr
    table = (repository / "told.md").read_text()
    for problem in ("axpy[large]", "axpy[small]"):
        assert problem in done.stdout
        assert problem in table
    assert "scale" not in table
    assert "| verdict | slow-down | bounds | evidence | what |" in table
