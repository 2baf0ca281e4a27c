"""What every test gets."""

import ctypes
import os
import sys

import pytest
from answers import asked

os.environ["COSTMODEL_TRUST"] = "1"  # the kernels that tests write into temporary folders are their own


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
    with asked("interpreted.py") as ask_whole:

        def ask(kernel: str, sizes: dict, config: dict) -> list[float]:
            answer = ask_whole({"kernel": kernel, "sizes": sizes, "config": config})
            assert "failed" not in answer, answer["failed"]
            return answer["errors"]

        yield ask
