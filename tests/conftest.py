"""What every test gets."""

import ctypes
import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def restored_float_mode():
    """A library built with -ffast-math makes subnormals zero in the whole process when it is loaded; undo that.

    Some tests load such kernels in the test process; the worker that measures loads them in a child of its own.
    """
    yield
    if sys.platform == "linux":
        default_environment = ctypes.c_void_p(-1)  # FE_DFL_ENV of glibc
        assert ctypes.CDLL("libm.so.6").fesetenv(default_environment) == 0


@pytest.fixture(scope="session")
def interpret():
    """(kernel, sizes, config) -> errors, in one process that interprets."""
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("interpreted.py"))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    def ask(kernel: str, sizes: dict, config: dict) -> list[float]:
        process.stdin.write(json.dumps({"kernel": kernel, "sizes": sizes, "config": config}) + "\n")
        process.stdin.flush()
        answer = json.loads(process.stdout.readline())
        assert "failed" not in answer, answer["failed"]
        return answer["errors"]

    yield ask
    process.stdin.close()
    process.wait()
