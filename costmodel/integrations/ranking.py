"""What the integrations share: the model that ranks, loaded once, and a way to ask it that never fails who asks."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from costmodel import devices
from costmodel.records import DTYPES, CostModel, Device, Measurement, TensorSpec, Timing, Variant

Answer = TypeVar("Answer")
Model = CostModel | str | Path | None  # a model, a model's folder, or None for the shipped one


class Guard:
    """Asks `question` until it fails once: then, and ever after, the answer is None. The user is told once."""

    def __init__(self, instead: str) -> None:
        """instead: what happens then, for the warning ("all configs are benchmarked")."""
        self.instead, self.given_up = instead, False

    def __call__(self, question: Callable[[], Answer]) -> Answer | None:
        if self.given_up:
            return None
        try:
            return question()
        except Exception as error:
            # A tuning must not fail for the model's sake, whatever its fault is.
            self.given_up = True
            reason = str(error) or type(error).__name__
            warnings.warn(f"costmodel ranks nothing here and {self.instead}: {reason}", stacklevel=3)
            return None


def best_first(variants: Sequence[Variant], device: Device, model: Model) -> list[int]:
    """Places in `variants`, the fastest predicted first; what will probably fail comes last."""
    told = loaded(model).predict(variants, device)
    return sorted(range(len(variants)), key=lambda i: (told[i].p_fail > 0.5, told[i].median_us))


def loaded(model: Model) -> CostModel:
    """The model itself, or the one in a folder, which is read once in a process."""
    return _from_folder(model) if model is None or isinstance(model, str | Path) else model


@functools.cache
def _from_folder(folder: str | Path | None) -> CostModel:
    from costmodel.predictor import NeuralCostModel

    return NeuralCostModel.from_pretrained(folder)


def sheet(device: Device | str | None) -> Device:
    """The sheet of a name; of this machine's GPU if left out."""
    if device is None:
        return devices.detect("cuda")
    return devices.find(device) if isinstance(device, str) else device


def spec(shape: Iterable[Any], dtype: Any) -> TensorSpec:
    """An input by its sizes and its element type as torch and Triton print it ("torch.float16")."""
    name = str(dtype).rpartition(".")[2]
    return TensorSpec(tuple(map(int, shape)), DTYPES.get(name, name))


def inputs(arguments: Iterable[Any]) -> tuple[TensorSpec, ...]:
    """The tensors among a kernel's arguments."""
    return tuple(spec(one.shape, one.dtype) for one in arguments if hasattr(one, "dtype") and hasattr(one, "shape"))


def measurement(variant: Variant, device: Device, us: float, *, failure: str) -> Measurement:
    """What a tuner said of a config, for a search: microseconds, or a number that is not finite for `failure`."""
    if not math.isfinite(us):
        return Measurement(variant, device, Timing(), (), "launch_error", error=failure)
    return Measurement(variant, device, Timing(), (), "ok", (us,))


def within(patience_s: float, question: Callable[[], Answer], what: str) -> Answer:
    """The answer to `question`, asked in a thread; TimeoutError where it takes longer (the thread is left to end)."""
    threads = ThreadPoolExecutor(1)
    try:
        return threads.submit(question).result(timeout=patience_s)
    except TimeoutError:
        raise TimeoutError(f"{what} took over {patience_s:g} s") from None
    finally:
        threads.shutdown(wait=False)
