"""Token shards: what is read back trains the same model, where no source text can be read."""

import json
import subprocess
import sys
import textwrap
from dataclasses import replace

import numpy as np
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
