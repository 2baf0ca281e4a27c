"""Measurements as files and as training data: parquet with a card, splits that cannot leak, search spaces."""

from costmodel.dataset.bounded import parquet_rows
from costmodel.dataset.card import Card
from costmodel.dataset.parquet import read_parquet, write_parquet
from costmodel.dataset.rows import (
    device_from_json,
    device_identity,
    kernel_identity,
    measurement_from,
    noun_json,
    printable,
    problem_from_json,
    schema_from_json,
    timing_from_json,
    to_json,
    tuples,
)
from costmodel.dataset.spaces import Group, SpaceKey, groups, space_key, space_of
from costmodel.dataset.splits import By, Split, assert_no_leak, chosen, family, split

__all__ = [
    "By",
    "Card",
    "Group",
    "SpaceKey",
    "Split",
    "assert_no_leak",
    "chosen",
    "device_from_json",
    "device_identity",
    "family",
    "groups",
    "kernel_identity",
    "measurement_from",
    "noun_json",
    "parquet_rows",
    "printable",
    "problem_from_json",
    "read_parquet",
    "schema_from_json",
    "space_key",
    "space_of",
    "split",
    "timing_from_json",
    "to_json",
    "tuples",
    "write_parquet",
]
