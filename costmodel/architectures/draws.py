"""What every family is made with: seeded choices, and a model with its inputs."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import nn

Item = TypeVar("Item")
TORCH = {"f32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Built:
    """`inputs` are real where they hold integers, whose range counts, and of the meta device where not."""

    model: nn.Module
    inputs: tuple[torch.Tensor, ...]


@dataclass
class Draw:
    """Choices from one seed. `dtype` and `batch` may be set from outside without a change in any other choice."""

    rng: random.Random
    dtype: str
    batch: int | None

    def one(self, *items: Item) -> Item:
        return self.rng.choice(items)

    def chance(self, share: float) -> bool:
        return self.rng.random() < share

    def whole(self, low: int, high: int) -> int:
        """Evenly from low to high."""
        return self.rng.randint(low, high)

    def size(self, low: int, high: int, step: int = 1) -> int:
        """Evenly on a log scale, a multiple of `step`."""
        drawn = math.exp(self.rng.uniform(math.log(low), math.log(high)))
        return max(step, round(drawn / step) * step)

    def batch_of(self, low: int, high: int) -> int:
        """The batch; drawn even where it is then replaced, so that what follows stays the same."""
        drawn = self.size(low, high)
        return drawn if self.batch is None else self.batch

    def normal(self, *shape: int) -> torch.Tensor:
        return torch.empty(shape, device="meta", dtype=TORCH[self.dtype])

    def tokens(self, vocabulary: int, *shape: int) -> torch.Tensor:
        """Two values are enough: the least and the greatest say the range."""
        x = torch.zeros(shape, dtype=torch.int64)
        x.view(-1)[-1] = vocabulary - 1
        return x

    def built(self, make: Callable[[], nn.Module], *inputs: torch.Tensor) -> Built:
        """The model in the drawn precision on the meta device."""
        with torch.device("meta"):
            model = make().to(TORCH[self.dtype])
        return Built(model.eval(), inputs)

    def activation(self) -> Callable[[torch.Tensor], torch.Tensor]:
        return self.one(*ACTIVATIONS)


def _tanh_gelu(x: torch.Tensor) -> torch.Tensor:
    return nn.functional.gelu(x, approximate="tanh")


ACTIVATIONS: Sequence[Any] = (
    torch.relu, nn.functional.gelu, nn.functional.silu, torch.tanh, torch.sigmoid, nn.functional.leaky_relu,
    nn.functional.elu, nn.functional.hardswish, nn.functional.softplus, _tanh_gelu, nn.functional.mish,
    nn.functional.relu6,
)  # fmt: skip


class Lambda(nn.Module):
    """A function, with its options, as a module."""

    def __init__(self, function: Callable[..., torch.Tensor], **options: Any) -> None:
        super().__init__()
        self.function, self.options = function, options

    def forward(self, *x: torch.Tensor) -> torch.Tensor:
        return self.function(*x, **self.options)


class Residual(nn.Module):
    """x + inner(x)."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.inner(x)
