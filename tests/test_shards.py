"""Token shards: what is read back trains the same model, where no source text can be read."""

import json
import pickle
import subprocess
import sys
import textwrap
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
from test_predictor import TINY, TRAINING
from test_search import DEVICE

from costmodel.examples import fit, shards_of
from costmodel.predictor import NeuralCostModel
from costmodel.records import UserError
from costmodel.shards import Shards

SHORT = replace(TINY, members=1, steps=8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    shards_of(TRAINING, SHORT).save(folder)
    return folder


def test_what_is_read_back_is_what_was_written(folder):
    written, read = shards_of(TRAINING, SHORT), Shards.load(folder)
    assert read.rows == written.rows == len(TRAINING)
    assert [tuple(text) for text in read.texts] == [tuple(text) for text in written.texts]
    assert read.details == json.loads(json.dumps(written.details))  # tuples as lists, as in a model folder
    for one, two in zip(written.groups, read.groups, strict=True):
        for name in ("source", "contexts", "suffixes", "spelled"):
            assert np.array_equal(getattr(one, name)[0], getattr(two, name)[0])
            assert len(getattr(one, name)) == len(getattr(two, name))
        assert np.array_equal(one.z, two.z, equal_nan=True)
        assert np.array_equal(one.failed, two.failed)
        assert one.rank_only == two.rank_only


def test_training_on_shards_needs_no_parser_and_gives_the_same_model(folder, tmp_path):
    code = textwrap.dedent(f"""
        import sys
        for name in ("tree_sitter", "tree_sitter_python", "tree_sitter_cpp", "tree_sitter_cuda"):
            sys.modules[name] = None  # as if it were not installed
        from costmodel.model import checkpoint
        from costmodel.recipe import Recipe, train_members
        from costmodel.shards import Shards
        shards = Shards.load({str(folder)!r})
        members, _ = train_members(shards, {SHORT!r})
        checkpoint.save({str(tmp_path)!r}, members, shards.tokenizer, details=shards.details)
    """)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    model, straight = NeuralCostModel.from_pretrained(tmp_path), fit(TRAINING, SHORT)[0]
    variants = [m.variant for m in TRAINING[:5]]
    for one, two in zip(model.predict(variants, DEVICE), straight.predict(variants, DEVICE), strict=True):
        assert one.median_us == pytest.approx(two.median_us, rel=0.02)  # the folder holds bfloat16


def test_what_is_no_folder_of_shards(tmp_path):
    with pytest.raises(UserError, match="--write-shards"):
        Shards.load(tmp_path)


def test_groups_are_read_as_they_are_asked_for(tmp_path, monkeypatch):
    made = shards_of(TRAINING, SHORT)
    whole = replace(made, groups=[replace(made.groups[0], z=made.groups[0].z + i) for i in range(7)], texts=[[1], [2]])
    monkeypatch.setattr("costmodel.shards.ROW_GROUP_IDS", len(TRAINING) * 40)
    whole.save(tmp_path)
    pieces = Shards.load(tmp_path)
    assert 1 < pq.ParquetFile(tmp_path / "groups.parquet").num_row_groups < 7
    assert len(pieces.groups) == 7
    for at in (6, 5, 4, 3, 2, 1, 0, -1, 0):
        one, two = whole.groups[at], pieces.groups[at]
        assert list(one.source) == two.source
        assert [list(ids) for ids in one.suffixes] == list(two.suffixes)
        assert np.array_equal(one.z, two.z, equal_nan=True)
    assert pieces.texts[:] == [[1], [2]]
    with pytest.raises(IndexError):
        pieces.groups[len(pieces.groups)]
    copied = pickle.loads(pickle.dumps(pieces.groups))  # as they go to a process of their own
    assert list(copied[1].spelled) == list(pieces.groups[1].spelled)


def test_ids_of_another_vocabulary_are_refused(folder, tmp_path):
    shards = Shards.load(folder)
    group = replace(shards.groups[0], source=[shards.tokenizer.vocab_size])
    Shards(shards.tokenizer, [group], shards.texts, {}).save(tmp_path)
    with pytest.raises(UserError, match="vocabulary"):
        Shards.load(tmp_path)


def test_shards_larger_than_memory_are_written_and_trained_on(folder, tmp_path):
    """120 MB of random ids, made as they are written, in a process that may grow by a third of it."""
    code = textwrap.dedent(f"""
        import re
        from collections.abc import Sequence
        from pathlib import Path
        import numpy as np
        from costmodel.dataset import bounded
        from costmodel.recipe import Recipe, train_members
        from costmodel.shards import Shards
        from costmodel.train import Group

        bounded.KEPT_BYTES = 4 << 20

        class Endless(Sequence):
            def __init__(self, count):
                self.count = count
            def __len__(self):
                return self.count
            def __getitem__(self, number):
                if number >= self.count:
                    raise IndexError
                suffixes = np.random.default_rng(number).integers(5, 250, (2000, 50)).tolist()
                return Group([number % 40 + 5], [[7]], suffixes, np.zeros(2000), np.zeros(2000, bool))

        def kilobytes(name):
            return int(re.search(name + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

        def trained(count):
            Shards(small.tokenizer, Endless(count), small.texts, {{}}).save({str(tmp_path)!r} + f"/{{count}}")
            return train_members(Shards.load({str(tmp_path)!r} + f"/{{count}}"), {replace(SHORT, steps=4)!r})
        small = Shards.load({str(folder)!r})
        trained(10)
        Path("/proc/self/clear_refs").write_text("5")  # the peak is now what is resident
        before = kilobytes("VmRSS")
        trained(300)
        print(1024 * (kilobytes("VmHWM") - before))
    """)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert 3 * int(done.stdout) < 300 * 2000 * 50 * 4
