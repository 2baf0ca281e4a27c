"""Text to tokens; the numbers that a model writes are those of codecs/.

`TextTokenizer` is a byte-level BPE of Hugging Face `tokenizers` with every digit on its own, so no input can fail to
tokenize and an unseen "108" is three seen digits. Numbers of the device and the problem are followed by a token of
their magnitude, log2 to a half (`108<m:7>`): digits tell 512 from 513, but only a reader that has learned to add them
up knows from them how large a number is. Settings seen in training are one token each (`<v:TILE=64>`).
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from costmodel import reading
from costmodel.records import Prompt, UserError

SPECIALS = ("<pad>", "<eot>", "<sep>")
LOWEST, HIGHEST = -20, 80  # magnitudes, in half doublings: 2^-10 to 2^40
MAGNITUDES = tuple(f"<m:{half / 2:g}>" for half in range(LOWEST, HIGHEST + 1))
_NUMBER = re.compile(r"2\^(-?\d+(?:\.\d+)?)|(?<!\w)\d+(?:\.\d+)?(?:e[+-]?\d+)?")

# A word with one sign before it, or a run of signs with the line breaks after it (`);\n` is one piece), or blanks.
_PIECE = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+\n*|\s*\n+|\s+"


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
                pre_tokenizers.Split(Regex(_PIECE), behavior="isolated"),
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
        document = reading.json_object(path, expected="a tokenizer.json")
        document |= dict.fromkeys(("truncation", "padding", "normalizer", "post_processor"))  # costmodel's has none
        for pattern in _patterns(document):
            if pattern != _PIECE:  # a hostile one could take for ever on a kernel's text
                raise UserError(
                    f"got {path} that splits text by {str(pattern)[:80]!r}, expected the pattern of costmodel's; "
                    "train another tokenizer"
                )
        try:
            tokenizer = Tokenizer.from_str(json.dumps(document))
            if sorted(tokenizer.get_vocab().values()) != list(range(tokenizer.get_vocab_size())):
                raise UserError("got a vocabulary with gaps, expected ids from 0 on")
            return TextTokenizer(tokenizer)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
        except BaseException as error:
            # The library raises bare Exception, and where its Rust panics one that is no Exception and has no module.
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            raise UserError(f"got {path}, expected a tokenizer.json: {str(error)[:200]}") from error

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

    def encode_measured(self, text: str) -> tuple[int, ...]:
        """Plain text with a magnitude after each number."""
        return self._measured_cached(text)

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


def _patterns(document: Any) -> Iterator[Any]:
    """What a tokenizer's document states as patterns, wherever it does."""
    left = [value for key, value in document.items() if key not in ("model", "added_tokens")]
    while left:
        value = left.pop()
        if isinstance(value, dict):
            yield from (found for key, found in value.items() if key == "Regex")
            yield from (found for key, found in value.items() if key == "pattern" and isinstance(found, str))
            left += value.values()
        elif isinstance(value, list):
            left += value


def _numeric_order(value: str) -> tuple[bool, float, str]:
    try:
        return False, float(value), value
    except ValueError:
        return True, 0.0, value
