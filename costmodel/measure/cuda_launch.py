"""Loads a cubin and starts its kernels on torch's current device and stream, by the driver's API (cuda.bindings)."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from costmodel.records import Launch, UserError

PLAIN_SHARED_BYTES = 48 << 10  # of dynamic shared memory, that a kernel gets without having asked for it


class LaunchError(Exception):
    """What the driver refused, one line."""


class Arguments:
    """A launch's arguments as the driver takes them: the address of an array of pointers to values.

    A tensor is its address, an int 32 bits, a float 32 bits, a numpy scalar what it is. Holds what it points to.
    """

    def __init__(self, args: Sequence[Any]) -> None:
        self._values = [_value(argument, place) for place, argument in enumerate(args)]
        self.sizes = [ctypes.sizeof(value) for value in self._values]
        self._pointers = (ctypes.c_void_p * max(1, len(args)))(*(ctypes.addressof(value) for value in self._values))

    @property
    def address(self) -> int:
        return ctypes.addressof(self._pointers)


def _value(argument: Any, place: int) -> Any:
    if hasattr(argument, "data_ptr"):
        return ctypes.c_void_p(argument.data_ptr())
    if hasattr(argument, "dtype") and hasattr(argument, "tobytes"):  # before float, which numpy.float64 is too
        raw = argument.tobytes()
        return (ctypes.c_char * len(raw)).from_buffer_copy(raw)
    if isinstance(argument, int):
        if not -(1 << 31) <= argument < 1 << 31:
            raise UserError(
                f"got argument {place} = {argument}, expected an int of 32 bits; pass numpy.int64({argument})"
            )
        return ctypes.c_int32(argument)
    if isinstance(argument, float):
        return ctypes.c_float(argument)
    raise UserError(
        f"got argument {place} of type {type(argument).__name__}, expected a tensor, an int, a float or a numpy scalar"
    )


@dataclass(slots=True)
class _Kernel:
    function: Any
    parameter_sizes: list[int]
    granted_bytes: int = PLAIN_SHARED_BYTES


class CudaModule:
    """The kernels of a cubin, loaded on torch's current device. LaunchError where the driver refuses it."""

    def __init__(self, cubin: bytes) -> None:
        import torch

        self.driver, self.torch = _driver(), torch
        torch.cuda.synchronize()  # makes torch's context of this device the thread's
        self.module = self._said("cuModuleLoadData", self.driver.cuModuleLoadData(cubin))
        self.kernels: dict[str, _Kernel] = {}

    def start(self, launch: Launch) -> None:
        """Starts a kernel and does not wait for it: what it does wrong shows at the next synchronisation."""
        kernel, arguments = self._kernel(launch.entry), Arguments(launch.args)
        if arguments.sizes != kernel.parameter_sizes:  # else the driver would read beyond them
            expected = kernel.parameter_sizes
            raise UserError(f"got arguments of {arguments.sizes} bytes for {launch.entry}, expected {expected}")
        if launch.shared_bytes > kernel.granted_bytes:
            attribute = self.driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            answer = self.driver.cuFuncSetAttribute(kernel.function, attribute, launch.shared_bytes)
            self._said(f"{launch.shared_bytes} B of dynamic shared memory", answer)
            kernel.granted_bytes = launch.shared_bytes
        shape = (*_three(launch.grid), *_three(launch.block), launch.shared_bytes)
        stream = self.driver.CUstream(self.torch.cuda.current_stream().cuda_stream)
        answer = self.driver.cuLaunchKernel(kernel.function, *shape, stream, arguments.address, 0)  # copies them
        self._said(f"starting {launch.entry}", answer)

    def close(self) -> None:
        """Unloads the kernels; none of them may be running."""
        self._said("cuModuleUnload", self.driver.cuModuleUnload(self.module))

    def _kernel(self, entry: str) -> _Kernel:
        if entry not in self.kernels:
            function = self._said(f"kernel {entry}", self.driver.cuModuleGetFunction(self.module, entry.encode()))
            sizes: list[int] = []
            while (found := self.driver.cuFuncGetParamInfo(function, len(sizes)))[0] == self._success:
                sizes.append(found[2])  # behind the last parameter the answer is an error
            self.kernels[entry] = _Kernel(function, sizes)
        return self.kernels[entry]

    @property
    def _success(self) -> Any:
        return self.driver.CUresult.CUDA_SUCCESS

    def _said(self, what: str, answer: tuple[Any, ...]) -> Any:
        status, *values = answer
        if status == self._success:
            return values[0] if values else None
        text = self.driver.cuGetErrorString(status)[1]
        raise LaunchError(f"{what}: {status.name}" + (f" ({text.decode()})" if text else ""))


def _three(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (*shape, 1, 1, 1)[:3]


def _driver() -> ModuleType:
    try:
        from cuda.bindings import driver
    except ImportError as error:
        raise UserError(
            f"cannot import cuda.bindings ({error}), which starts CUDA; pip install 'costmodel[cuda]'"
        ) from error
    return driver
