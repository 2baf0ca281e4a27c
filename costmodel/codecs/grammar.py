"""What every codec is: a vocabulary, the table of what may follow, and what is said in place of a number."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar, Literal, Protocol, get_args

import numpy as np

from costmodel.records import UserError

Domain = Literal["linear", "log2"]  # what a codec writes: a number as it is, or its base-2 logarithm
FAILED, UNMEASURED = "failed", "unmeasured"
State = Any  # of a grammar, by whatever names it best: hashable


_PLAIN: dict[str, Callable[..., Any]] = {"specials": str, "edges": float}  # options that are lists, and of what


class NumberCodec(Protocol):
    """Numbers as token strings of one length, and the grammar that leaves one string per value."""

    domain: Domain
    vocabulary: tuple[str, ...]
    num_tokens: int  # tokens per number
    specials: dict[str, int]  # ids of what is no number, "failed" among them; num_tokens of one say it
    mask: np.ndarray  # bool (states, vocabulary): may this token come next? State 0 begins a number
    next_state: np.ndarray  # int64 (states, vocabulary); -1 where the mask is False

    @property
    def failed(self) -> int:
        """The id that says "this candidate did not run"."""
        ...

    def encode(self, value: float) -> list[int]: ...

    def encode_special(self, name: str) -> list[int]: ...

    def special(self, ids: Sequence[int]) -> str | None: ...

    def decode(self, ids: Sequence[int]) -> float:
        """NaN for what is no number; ValueError for a string that the grammar does not allow."""
        ...

    def allowed_next(self, prefix: Sequence[int]) -> tuple[int, ...]:
        """Ids that may follow, in ascending order; none after a whole number."""
        ...

    def options(self) -> dict[str, Any]:
        """What `codecs.codec_from` makes the codec of again, JSON-able."""
        ...


class Grammar:
    """A table of states, as mask and transitions over a vocabulary; the last state is the end.

    `specials` are what is said in place of a number: "failed", and "unmeasured" where a codec is made with it.
    `detail` names the keyword for how many digits are written last, so that a codec with fewer says less exactly.
    """

    domain: Domain = "linear"
    detail: ClassVar[str | None] = None
    vocabulary: tuple[str, ...]
    num_tokens: int
    mask: np.ndarray
    next_state: np.ndarray
    specials: dict[str, int]

    def _tabulate(
        self,
        words: Sequence[str],
        num_tokens: int,
        specials: Sequence[str],
        follow: Callable[[State], Iterable[tuple[int, State]]],
    ) -> None:
        """`follow`: a state -> (token, the state after it); it begins with "start", and a number ends at "end"."""
        if FAILED not in specials or set(specials) - {FAILED, UNMEASURED}:
            raise UserError(f"got specials {list(specials)}, expected {FAILED} and at most {UNMEASURED} beside it")
        self.vocabulary = (*words, *(f"<{name}>" for name in specials))
        self.num_tokens = num_tokens
        self.specials = {name: len(words) + i for i, name in enumerate(specials)}
        transitions: list[tuple[State, int, State]] = []
        number: dict[State, int] = {"start": 0}
        waiting: list[State] = ["start"]
        while waiting:
            state = waiting.pop(0)
            steps = list(self._special_steps(state)) if isinstance(state, _Special) else list(follow(state))
            if state == "start":
                steps += self._special_steps(None)
            for token, after in steps:
                transitions.append((state, token, after))
                if after != "end" and after not in number:
                    number[after] = len(number)
                    waiting.append(after)
        number["end"] = len(number)
        self.next_state = np.full((len(number), len(self.vocabulary)), -1, dtype=np.int64)
        for state, token, after in transitions:
            self.next_state[number[state], token] = number[after]
        self.mask = self.next_state >= 0

    def _special_steps(self, state: _Special | None) -> Iterable[tuple[int, State]]:
        for token in [state.token] if state else self.specials.values():
            told = state.told + 1 if state else 1
            yield token, _Special(token, told) if told < self.num_tokens else "end"

    @property
    def failed(self) -> int:
        return self.specials[FAILED]

    def options(self) -> dict[str, Any]:
        """The constructor's keywords, each of which a codec keeps under its own name."""
        kept = {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}
        return {name: list(map(_PLAIN[name], value)) if name in _PLAIN else value for name, value in kept.items()}

    def allowed_next(self, prefix: Sequence[int]) -> tuple[int, ...]:
        return tuple(map(int, np.flatnonzero(self.mask[self._state(prefix)])))

    def encode_special(self, name: str) -> list[int]:
        """What stands for no number: "failed" (it did not compile, crashed, timed out or answered wrongly)."""
        if name not in self.specials:
            raise UserError(f"got special {name!r}, expected one of {', '.join(self.specials)}")
        return [self.specials[name]] * self.num_tokens

    def special(self, ids: Sequence[int]) -> str | None:
        """Which special a whole string is; None for a number."""
        self._check_whole(ids)
        return next((name for name, token in self.specials.items() if token == ids[0]), None)

    def _state(self, prefix: Sequence[int]) -> int:
        state = 0
        for token in prefix:
            if not 0 <= token < len(self.vocabulary) or not self.mask[state, token]:
                raise ValueError(f"got tokens {list(prefix)}, which this grammar does not allow")
            state = int(self.next_state[state, token])
        return state

    def _check_whole(self, ids: Sequence[int]) -> None:
        self._state(ids)
        if len(ids) != self.num_tokens:
            raise ValueError(f"got {len(ids)} tokens, expected {self.num_tokens}")


class _Special:
    """So many times a special token was told; equal by value, and apart from a codec's own states."""

    def __init__(self, token: int, told: int) -> None:
        self.token, self.told = token, told

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Special) and (self.token, self.told) == (other.token, other.told)

    def __hash__(self) -> int:
        return hash((self.token, self.told))


def check_domain(domain: Domain) -> Domain:
    if domain not in get_args(Domain):
        raise UserError(f"got domain={domain!r}, expected one of {', '.join(get_args(Domain))}")
    return domain


def check_number(value: float, *, signed_zero: bool = False) -> None:
    if not math.isfinite(value) or (signed_zero and value == 0 and math.copysign(1, value) < 0):
        also = ", not -0.0" if signed_zero else ""
        raise ValueError(f"got {value}, expected a finite number{also} (a failure is encode_special('failed'))")
