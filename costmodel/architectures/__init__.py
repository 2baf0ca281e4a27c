"""A generator of network architectures: families of torch modules, each graph named by its family and a number.

    built = build("attention:17")              # the same model and inputs on every machine
    built = build("attention:17:bf16:b4")      # the same with another precision or batch
    names(count=4000)                          # what a dataset is made of: every family in turn

Models lie on the meta device (those of Hugging Face, made from a config, in memory that nothing fills): shapes and
types are what counts. No weight is downloaded. Every layer that a model has is used, since work that nothing uses would
be run by some engines and not by others.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from costmodel.records import UserError

if TYPE_CHECKING:
    from costmodel.architectures.draws import Built

# Family: how many of its graphs stand among 100.
SHARES = {
    "mlp": 9, "conv": 12, "attention": 14, "recurrent": 8, "moe": 7, "mix": 12, "norm": 7, "scan": 7, "embedding": 6,
    "hf-encoder": 4, "hf-decoder": 5, "hf-vision": 4, "hf-speech": 2, "hf-moe": 1, "hf-ssm": 2,
}  # fmt: skip
VERSIONS = ("f32", "bf16", "b1", "b8")  # in which every 16th graph of a family stands too
EVERY = 16


def families() -> tuple[str, ...]:
    return tuple(SHARES)


def names(*, count: int, only: Sequence[str] = ()) -> list[str]:
    """The first `count` graphs, families mixed by their shares: a longer list begins with the shorter one. After every
    16th graph of a family come its versions in other precisions and batches (some may equal the graph itself)."""
    if unknown := [family for family in only if family not in SHARES]:
        raise UserError(f"got family {unknown[0]!r}, expected one of {', '.join(SHARES)}")
    numbers = dict.fromkeys(only or SHARES, 0)
    credit = dict.fromkeys(numbers, 0.0)
    total = sum(SHARES[family] for family in numbers)
    found: list[str] = []
    while len(found) < count:
        for family in credit:
            credit[family] += SHARES[family] / total
        family = max(credit, key=lambda name: credit[name])
        credit[family] -= 1
        graph = f"{family}:{numbers[family]}"
        found.append(graph)
        if numbers[family] % EVERY == 0:
            found += [f"{graph}:{version}" for version in VERSIONS]
        numbers[family] += 1
    return found[:count]


def build(name: str) -> Built:
    """The model and inputs of FAMILY:NUMBER; :bf16, :f32 and :bBATCH say another precision or batch than was drawn."""
    from costmodel.architectures import dense, draws, huggingface, mixed, sequences, spatial

    family, _, rest = name.partition(":")
    number, *changes = rest.split(":") if rest else ("",)
    makers: dict[str, Callable[[draws.Draw], Built]] = {
        **dense.FAMILIES, **spatial.FAMILIES, **sequences.FAMILIES, **mixed.FAMILIES, **huggingface.FAMILIES,
    }  # fmt: skip
    if family not in makers or not number.isdigit():
        raise UserError(f"got {name!r}, expected FAMILY:NUMBER such as mlp:17, of {', '.join(SHARES)}")
    rng = random.Random(f"{family}:{number}")
    draw = draws.Draw(rng, dtype="bf16" if rng.random() < 0.2 else "f32", batch=None)
    for change in changes:
        if change in ("f32", "bf16"):
            draw.dtype = change
        elif change[:1] == "b" and change[1:].isdigit() and int(change[1:]):
            draw.batch = int(change[1:])
        else:
            raise UserError(f"got {change!r} in {name!r}, expected f32, bf16 or a batch such as b4")
    return makers[family](draw)
