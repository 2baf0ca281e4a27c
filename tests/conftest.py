"""What every test gets."""

import ctypes
import sys

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
