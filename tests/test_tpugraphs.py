"""TpuGraphs files: small ones of the project's own making in the public form, and broken ones."""

import io
import zipfile

import numpy as np
import pytest

from costmodel import tpugraphs
from costmodel.records import UserError

RNG = np.random.default_rng(0)


def tile(**changes):
    arrays = {
        "node_feat": RNG.normal(size=(5, 140)).astype(np.float32),
        "node_opcode": np.array([63, 63, 34, 2, 74], dtype=np.uint8),
        "edge_index": np.array([[2, 0], [2, 1], [3, 2], [4, 3]], dtype=np.int64),
        "config_feat": RNG.normal(size=(6, 24)).astype(np.float32),
        "config_runtime": np.array([30, 10, 20, 60, 50, 40], dtype=np.int64),
        "config_runtime_normalizers": np.array([10, 10, 10, 20, 10, 10], dtype=np.int64),
    }
    return {name: array for name, array in (arrays | changes).items() if array is not None}


def layout(**changes):
    own = {
        "node_config_ids": np.array([1, 3]),
        "node_config_feat": RNG.normal(size=(6, 2, 18)).astype(np.float32),
        "node_splits": np.array([[0, 5]]),
    }
    return tile(**{"config_feat": None, "config_runtime_normalizers": None, **own, **changes})


def written(path, arrays):
    np.savez_compressed(path, **arrays)
    return path


def test_a_tile_file(tmp_path):
    graph = tpugraphs.read(written(tmp_path / "kernel.npz", tile()))
    assert (graph.name, graph.collection) == ("kernel", "tile")
    assert graph.edges.tolist() == [[0, 1, 2, 3], [2, 2, 3, 4]]  # from a value to its user
    assert graph.targets.tolist() == [3.0, 1.0, 2.0, 3.0, 5.0, 4.0]
    found = list(graph.rows())
    assert len(found) == 6
    assert found[1][2] == 1.0
    assert found[1][1].shape == (24,)
    perfect = tpugraphs.scores(graph, graph.targets)
    assert perfect == {"top_1_error": 0.0, "top_5_error": 0.0, "top_10_error": 0.0}
    worst = tpugraphs.scores(graph, -graph.targets)
    assert worst["top_1_error"] == pytest.approx(4.0)
    assert worst["top_5_error"] == pytest.approx(1.0)


def test_a_layout_file(tmp_path):
    graph = tpugraphs.read(written(tmp_path / "model.npz", layout()))
    assert graph.collection == "layout"
    assert graph.configs.shape == (6, 2, 18)
    assert graph.config_nodes.tolist() == [1, 3]
    assert tpugraphs.scores(graph, graph.targets)["kendall"] == pytest.approx(1.0)
    assert tpugraphs.scores(graph, -graph.targets)["kendall"] == pytest.approx(-1.0)


def test_a_folder_is_read_in_order(tmp_path):
    for name in ("b", "a"):
        written(tmp_path / f"{name}.npz", tile())
    assert [graph.name for graph in tpugraphs.read_folder(tmp_path)] == ["a", "b"]
    with pytest.raises(UserError, match=r"without a \.npz"):
        list(tpugraphs.read_folder(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        (tile(node_opcode=None), "without node_opcode"),
        (layout(node_config_ids=np.array([1, 9])), "do not fit"),
        (tile(edge_index=np.array([[7, 0]])), "do not fit"),
        (tile(config_runtime=np.zeros(3)), "do not fit"),
        (tile(config_runtime_normalizers=np.zeros(6)), "do not fit"),
        (tile(node_feat=np.zeros(5)), "node_feat has shape"),
        (tile(node_opcode=np.array(["a"] * 5)), "node_opcode has shape"),
    ],
)
def test_a_file_that_does_not_hold_together_is_one_clear_line(tmp_path, arrays, words):
    path = tmp_path / "x.npz"
    with pytest.raises(UserError, match=words):
        tpugraphs.read(written(path, arrays))


def test_what_is_no_npz_is_refused(tmp_path):
    broken = tmp_path / "broken.npz"
    broken.write_bytes(b"PK\x03\x04 nothing")
    with pytest.raises(UserError, match="expected a npz file"):
        tpugraphs.read(broken)
    pickled = tmp_path / "pickled.npz"
    np.savez(pickled, **tile(node_feat=np.array([[{}]], dtype=object)))
    with pytest.raises(UserError, match="pickle"):
        tpugraphs.read(pickled)
    (tmp_path / "model.pb").write_bytes(b"\x0a")
    with pytest.raises(UserError, match="protobuf"):
        tpugraphs.read(tmp_path / "model.pb")


def test_a_file_that_would_unpack_to_everything_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(tpugraphs, "MOST_BYTES", 10_000)
    path = tmp_path / "bomb.npz"
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(100_000))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("node_feat.npy", buffer.getvalue())
    with pytest.raises(UserError, match="unpacked"):
        tpugraphs.read(path)
