"""Text to tokens and numbers to tokens.

`TextTokenizer` is a byte-level BPE of Hugging Face `tokenizers` with every digit on its own, so no input can fail to
tokenize and an unseen "108" is three seen digits. Numbers of the device and the problem are followed by a token of
their magnitude, log2 to a half (`108<m:7>`): digits tell 512 from 513, but only a reader that has learned to add them
up knows from them how large a number is. Settings seen in training are one token each (`<v:TILE=64>`).

The number codecs share one interface, `NumberCodec`: a number is a string of exactly `num_tokens` tokens of a small
vocabulary of its own, and a table says which token may follow (`mask`, `next_state`), so that a batch is constrained on
the device without a Python call per sample. Each value that can be written has exactly one string.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from costmodel.records import Prompt, UserError

SPECIALS = ("<pad>", "<eot>", "<sep>")
LOWEST, HIGHEST = -20, 80  # magnitudes, in half doublings: 2^-10 to 2^40
MAGNITUDES = tuple(f"<m:{half / 2:g}>" for half in range(LOWEST, HIGHEST + 1))
_NUMBER = re.compile(r"2\^(-?\d+(?:\.\d+)?)|(?<!\w)\d+(?:\.\d+)?(?:e[+-]?\d+)?")

# A word with one sign before it, or a run of signs with the line breaks after it (`);\n` is one piece), or blanks.
_PIECE = Regex(r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+\n*|\s*\n+|\s+")


@dataclass(frozen=True, slots=True)
class Encoded:
    """Token ids of a prefix: `source`, what the budget left of it, and `context`, device and problem. `truncated`
    counts the tokens of the source that did not fit."""

    source: tuple[int, ...]
    context: tuple[int, ...]
    truncated: int = 0

    @property
    def ids(self) -> tuple[int, ...]:
        return self.source + self.context


class TextTokenizer:
    """Prompts to token ids. The text of a prompt can never be read as a special token or a value token."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        ids = {name: i for name in (*SPECIALS, *MAGNITUDES) if (i := tokenizer.token_to_id(name)) is not None}
        missing = [name for name in (*SPECIALS, *MAGNITUDES) if name not in ids]
        if missing:
            raise UserError(f"got a tokenizer without {', '.join(missing[:4])}; expected one that costmodel trained")
        tokenizer.encode_special_tokens = True  # "<eot>" inside a source is five characters, not the end
        self._tokenizer = tokenizer
        self.pad_id, self.eot_id, self.sep_id = (ids[name] for name in SPECIALS)
        self._magnitudes = tuple(ids[name] for name in MAGNITUDES)
        added = tokenizer.get_added_tokens_decoder()
        self._values = {t.content[3:-1]: i for i, t in added.items() if t.content.startswith("<v:")}
        self._encode_cached = lru_cache(maxsize=4096)(self._encode)
        self._measured_cached = lru_cache(maxsize=4096)(self._measured)

    @staticmethod
    def train(texts: Iterable[Prompt | str], *, vocab_size: int = 2048) -> TextTokenizer:
        """Learn merges from the distinct texts, and one token for each setting (NAME=value) of the prompts.

        At most a quarter of the vocabulary goes to settings, the most frequent first; the others are spelled out.
        """
        parts: dict[str, None] = {}
        values: Counter[str] = Counter()
        for text in texts:
            if isinstance(text, str):
                parts[text] = None
            else:
                parts.update(dict.fromkeys((text.source, text.device, text.problem)))
                values.update(text.config)
        kept = sorted(values, key=lambda value: (-values[value], value))[: vocab_size // 4]
        specials = [*SPECIALS, *MAGNITUDES, *(f"<v:{value}>" for value in sorted(kept, key=_numeric_order))]
        least = len(specials) + len(pre_tokenizers.ByteLevel.alphabet())
        if vocab_size < least:
            raise UserError(f"got vocab_size={vocab_size}, expected at least {least} (bytes and special tokens)")
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(_PIECE, behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[AddedToken(token, special=True, normalized=False) for token in specials],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        tokenizer.train_from_iterator(parts, trainer)
        return TextTokenizer(tokenizer)

    @staticmethod
    def load(path: str | Path) -> TextTokenizer:
        """Read a `tokenizer.json`, or the one in a folder."""
        path = Path(path)
        path = path / "tokenizer.json" if path.is_dir() else path
        try:
            return TextTokenizer(Tokenizer.from_file(str(path)))
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
        except Exception as error:  # the library raises bare Exception
            raise UserError(f"got {path}, expected a tokenizer.json: {error}") from error

    def save(self, path: str | Path) -> None:
        """Write a `tokenizer.json` (into `path` if that is a folder) that `tokenizers` and transformers read."""
        path = Path(path)
        self._tokenizer.save(str(path / "tokenizer.json" if path.is_dir() else path))

    @property
    def vocab_size(self) -> int:
        return self._tokenizer.get_vocab_size()

    @property
    def known_values(self) -> tuple[str, ...]:
        """The config values that are one token each."""
        return tuple(self._values)

    def encode(self, text: str) -> tuple[int, ...]:
        """Plain text, without special tokens."""
        return self._encode_cached(text)

    def decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(list(ids), skip_special_tokens=False)

    def encode_prefix(self, prompt: Prompt, budget: int | None = None) -> Encoded:
        """`source <sep> device <sep> problem <sep>`, the parts encoded apart, so that equal parts have equal tokens.

        What exceeds `budget` tokens is cut from the end of the source and counted; the device and the problem are
        never cut: a budget too small for them is a UserError.
        """
        source = self._encode_cached(prompt.source)
        rest = self.encode_context(prompt.device, prompt.problem)
        if budget is None:
            return Encoded(source, rest)
        if budget < len(rest):
            raise UserError(f"got a budget of {budget} tokens, expected at least {len(rest)} (device and problem)")
        kept = source[: budget - len(rest)]
        return Encoded(kept, rest, len(source) - len(kept))

    def encode_context(self, device: str, problem: str) -> tuple[int, ...]:
        """`<sep> device <sep> problem <sep>`: what follows the source in a prefix, magnitudes after its numbers."""
        return (self.sep_id, *self._measured_cached(device), self.sep_id, *self._measured_cached(problem), self.sep_id)

    def encode_suffix(self, prompt: Prompt, *, spelled: Container[int] = ()) -> list[int]:
        """One token per known setting; text and digits closed by `<sep>` for any other; then `<eot>`.

        Settings at the positions `spelled` are written out though known: training does so now and then, since that is
        how the settings of an unseen kernel arrive.
        """
        ids: list[int] = []
        for position, setting in enumerate(prompt.config):
            token = None if position in spelled else self._values.get(setting)
            ids += [token] if token is not None else [*self._measured_cached(setting), self.sep_id]
        return [*ids, self.eot_id]

    def _encode(self, text: str) -> tuple[int, ...]:
        # Lone surrogates are the only characters that UTF-8 has no bytes for.
        text = text.encode("utf-8", errors="replace").decode()
        return tuple(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def _measured(self, text: str) -> tuple[int, ...]:
        """Text with a magnitude token after each number; a power "2^9.3" has its exponent as magnitude."""
        ids: list[int] = []
        start = 0
        for match in _NUMBER.finditer(text):
            ids += self._encode_cached(text[start : match.end()])
            log2 = float(match[1]) if match[1] else math.log2(max(float(match[0]), 2.0**-10))
            ids.append(self._magnitudes[min(max(round(2 * log2), LOWEST), HIGHEST) - LOWEST])
            start = match.end()
        return (*ids, *self._encode_cached(text[start:]))


def _numeric_order(value: str) -> tuple[bool, float, str]:
    try:
        return False, float(value), value
    except ValueError:
        return True, 0.0, value


class NumberCodec(Protocol):
    """Numbers as token strings of one length, and the grammar that leaves one string per value."""

    vocabulary: tuple[str, ...]
    num_tokens: int  # tokens per number
    failed: int  # the id that says "this candidate did not run"; a failure is num_tokens of it
    mask: np.ndarray  # bool (states, vocabulary): may this token come next? State 0 begins a number
    next_state: np.ndarray  # int64 (states, vocabulary); -1 where the mask is False

    def encode(self, value: float) -> list[int]: ...

    def decode(self, ids: Sequence[int]) -> float:
        """NaN for a failure; ValueError for a string that the grammar does not allow."""
        ...

    def allowed_next(self, prefix: Sequence[int]) -> tuple[int, ...]:
        """Ids that may follow, in ascending order; none after a whole number."""
        ...


class _Grammar:
    """A table of states, as mask and transitions over a vocabulary; the last state is the end."""

    vocabulary: tuple[str, ...]
    num_tokens: int
    failed: int
    mask: np.ndarray
    next_state: np.ndarray

    def _tabulate(self, states: int, transitions: Iterable[tuple[int, int, int]]) -> None:
        self.next_state = np.full((states, len(self.vocabulary)), -1, dtype=np.int64)
        for state, token, after in transitions:
            self.next_state[state, token] = after
        self.mask = self.next_state >= 0

    def allowed_next(self, prefix: Sequence[int]) -> tuple[int, ...]:
        return tuple(map(int, np.flatnonzero(self.mask[self._state(prefix)])))

    def encode_failed(self) -> list[int]:
        """A candidate that did not compile, crashed, timed out or answered wrongly."""
        return [self.failed] * self.num_tokens

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


class LogGrid(_Grammar):
    """One token on a grid over log2 slowdown; a value decodes to the centre of its bin.

        >>> grid = LogGrid()
        >>> grid.encode(0.0), grid.decode([77])
        ([76], 0.0546875)

    Values beyond the ends take the end bin, and `clips` says so. Token id `bins` is `failed`.
    """

    def __init__(self, *, low: float = -6.0, high: float = 14.0, bins: int = 256) -> None:
        if not (low < high and bins >= 1):
            raise UserError(f"got low={low}, high={high}, bins={bins}, expected low < high and bins >= 1")
        self.low, self.high, self.bins = low, high, bins
        self.width = (high - low) / bins
        self.edges = low + self.width * np.arange(bins + 1)  # float64 (bins + 1,)
        self.centres = low + self.width * (np.arange(bins) + 0.5)  # float64 (bins,)
        self.failed = bins
        self.num_tokens = 1
        self.vocabulary = (*(f"<b:{centre:.6g}>" for centre in self.centres), "<failed>")
        self._tabulate(2, ((0, token, 1) for token in range(bins + 1)))

    def clips(self, value: float) -> bool:
        """Is the value beyond the grid, so that its token is off by more than half a bin?"""
        return not self.low <= value <= self.high

    def encode(self, value: float) -> list[int]:
        if not math.isfinite(value):
            raise ValueError(f"got {value}, expected a finite number (a failure is encode_failed())")
        return [min(self.bins - 1, max(0, math.floor((value - self.low) / self.width)))]

    def decode(self, ids: Sequence[int]) -> float:
        self._check_whole(ids)
        return float("nan") if ids[0] == self.failed else float(self.centres[ids[0]])


class P10(_Grammar):
    """Sign, mantissa digits, exponent of ten: `+ 1 2 3 4 E-3` is 1234 * 10**-3 (after OmniPred, arXiv 2402.14547).

    Worked example with 4 digits: 0.98765 is 9.877e-1 (half to even on the exact binary value, which lies a little above
    the tie), written as the integer 9877 and the exponent -1 - 3 = -4; 1234.5 is a tie and goes to the even 1234:

        >>> codec = P10()
        >>> [codec.vocabulary[i] for i in codec.encode(0.98765)]
        ['+', '9', '8', '7', '7', 'E-4']
        >>> codec.decode(codec.encode(0.98765)), codec.decode(codec.encode(1234.5))
        (0.9877, 1234.0)

    The first digit is zero for zero alone, and zero is `+ 0 0 0 0 E0` alone, so each value has one string. Magnitudes
    that would need an exponent below the lowest are 0; above the highest they take the largest number. -0.0, NaN and
    infinities raise ValueError. `failed` stands for a candidate that did not run and is repeated to full length.
    """

    def __init__(self, *, mantissa_digits: int = 4, min_exponent: int = -10, max_exponent: int = 10) -> None:
        if mantissa_digits < 1 or not min_exponent <= 0 <= max_exponent:
            raise UserError(
                f"got mantissa_digits={mantissa_digits}, exponents {min_exponent}..{max_exponent}, "
                "expected at least one digit and a range that holds 0"
            )
        self.mantissa_digits, self.min_exponent, self.max_exponent = mantissa_digits, min_exponent, max_exponent
        exponents = range(min_exponent, max_exponent + 1)
        self.vocabulary = ("+", "-", *map(str, range(10)), *(f"E{e}" for e in exponents), "<failed>")
        self.num_tokens = mantissa_digits + 2
        self.failed = len(self.vocabulary) - 1
        self._tabulate(self._end() + 1, self._transitions())

    def encode(self, value: float) -> list[int]:
        if not math.isfinite(value) or (value == 0 and math.copysign(1, value) < 0):
            raise ValueError(f"got {value}, expected a finite number, not -0.0 (a failure is encode_failed())")
        # The format rounds half to even on the exact binary value.
        mantissa, _, power = f"{abs(value):.{self.mantissa_digits - 1}e}".partition("e")
        digits = mantissa.replace(".", "")
        exponent = int(power) - (self.mantissa_digits - 1)
        if value == 0 or exponent < self.min_exponent:
            return [0, *[2] * self.mantissa_digits, self._exponent(0)]
        if exponent > self.max_exponent:
            digits, exponent = "9" * self.mantissa_digits, self.max_exponent
        return [int(value < 0), *(2 + int(digit) for digit in digits), self._exponent(exponent)]

    def decode(self, ids: Sequence[int]) -> float:
        self._check_whole(ids)
        if ids[0] == self.failed:
            return float("nan")
        sign, *digits, exponent = (self.vocabulary[i] for i in ids)
        return float(f"{sign}{''.join(digits)}{exponent}")

    def _exponent(self, exponent: int) -> int:
        return 12 + exponent - self.min_exponent

    def _transitions(self) -> Iterable[tuple[int, int, int]]:
        """States: 0 start, 1 after +, 2 after -, then n digits of a number, n zeros, n times failed, and the end."""
        n = self.mantissa_digits
        number, zero, failed, end = 2, 2 + n, 2 + 2 * n, self._end()
        yield from ((0, 0, 1), (0, 1, 2), (0, self.failed, failed + 1), (1, 2, zero + 1))
        for sign in (1, 2):
            yield from ((sign, 2 + digit, number + 1) for digit in range(1, 10))
        for k in range(1, n):
            yield from ((number + k, 2 + digit, number + k + 1) for digit in range(10))
            yield zero + k, 2, zero + k + 1
        exponents = range(self.min_exponent, self.max_exponent + 1)
        yield from ((number + n, self._exponent(exponent), end) for exponent in exponents)
        yield zero + n, self._exponent(0), end
        for k in range(1, n + 2):
            yield failed + k, self.failed, failed + k + 1 if k <= n else end

    def _end(self) -> int:
        return 3 * self.mantissa_digits + 4
