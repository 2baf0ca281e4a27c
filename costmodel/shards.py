"""Token shards: what training reads, as files of token ids. They hold no text, and need no parser to be read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from costmodel.records import UserError
from costmodel.tokens import TextTokenizer
from costmodel.train import Group

_IDS = pa.list_(pa.int32())
_SCHEMA = pa.schema(
    [
        ("source", _IDS), ("contexts", pa.list_(_IDS)), ("suffixes", pa.list_(_IDS)), ("spelled", pa.list_(_IDS)),
        ("z", pa.list_(pa.float64())), ("failed", pa.list_(pa.bool_())), ("rank_only", pa.bool_()),
    ]
)  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class Shards:
    """Groups for "latency", texts for "next-token", the tokenizer of their ids, and what a model made of them is to
    remember (`details`)."""

    tokenizer: TextTokenizer
    groups: Sequence[Group]
    texts: Sequence[Sequence[int]]
    details: dict[str, Any]

    @property
    def rows(self) -> int:
        return sum(len(group.suffixes) for group in self.groups)

    def save(self, folder: str | Path) -> None:
        """groups.parquet, texts.parquet, tokenizer.json, details.json."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        rows = [{name: getattr(group, name) for name in _SCHEMA.names} for group in self.groups]
        pq.write_table(pa.Table.from_pylist(rows, schema=_SCHEMA), folder / "groups.parquet", compression="zstd")
        texts = pa.table({"ids": pa.array([list(text) for text in self.texts], _IDS)})
        pq.write_table(texts, folder / "texts.parquet", compression="zstd")
        self.tokenizer.save(folder)
        (folder / "details.json").write_text(json.dumps(self.details))

    @staticmethod
    def load(folder: str | Path) -> Shards:
        folder = Path(folder)
        if not (folder / "groups.parquet").is_file():
            raise UserError(
                f"got {folder}, expected a folder of token shards; `costmodel train --write-shards` makes one"
            )
        groups = [
            Group(**{**row, "z": np.array(row["z"], float), "failed": np.array(row["failed"], bool)})
            for row in pq.read_table(folder / "groups.parquet").to_pylist()
        ]
        texts = pq.read_table(folder / "texts.parquet")["ids"].to_pylist()
        details = json.loads((folder / "details.json").read_text())
        return Shards(TextTokenizer.load(folder), groups, texts, details)
