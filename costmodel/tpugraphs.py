"""TpuGraphs (Phothilimthana et al., 2023), read into (graph, configuration, runtime) rows.

One npz file is one program of one of two collections. With n nodes, m edges and c configurations both hold

    node_feat (n, 140)   node_opcode (n,)   edge_index (m, 2)   config_runtime (c,)

and besides: tile, one configuration for a whole kernel, `config_feat` (c, 24) and `config_runtime_normalizers` (c,),
the runtime of the default in the same sitting; layout, one for each of k configurable nodes, `node_config_ids` (k,) and
`node_config_feat` (c, k, 18), and where the graph was partitioned `node_splits`. An edge (u, v) says that u uses what v
makes. The protobuf files of the same programs are not read.

What a model is scored by: on tile the error of the best of its top k (`stats.top_k_error`, of normalised runtimes), on
layout Kendall's tau (`stats.kendall`).
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from costmodel import reading, stats
from costmodel.records import UserError

MOST_BYTES = 8 << 30  # unpacked
_BOTH = {"node_feat": 2, "node_opcode": 1, "edge_index": 2, "config_runtime": 1}
_TILE = {"config_feat": 2, "config_runtime_normalizers": 1}
_LAYOUT = {"node_config_ids": 1, "node_config_feat": 3}
_PROTOBUF = (".pb", ".pbtxt", ".textproto")


@dataclass(frozen=True, slots=True, eq=False)
class TpuGraph:
    """A program and what was measured of it. edges (2, m) go from a value to its user. configs (c, 24), or (c, k, 18)
    for the `config_nodes` (k,). `runtimes` (c,) as measured, in the file's unit; `normalizers` (c,), 1 in layout."""

    name: str
    collection: Literal["tile", "layout"]
    opcodes: NDArray[np.int64]
    features: NDArray[np.float32]
    edges: NDArray[np.int64]
    config_nodes: NDArray[np.int64]
    configs: NDArray[np.float32]
    runtimes: NDArray[np.float64]
    normalizers: NDArray[np.float64]

    @property
    def targets(self) -> NDArray[np.float64]:
        """(c,) what models are asked to order: runtimes over their normalizers."""
        return np.asarray(self.runtimes / self.normalizers)

    def rows(self) -> Iterator[tuple[TpuGraph, NDArray[np.float32], float]]:
        """(graph, configuration, runtime), one for each configuration."""
        for config, runtime in zip(self.configs, self.targets, strict=True):
            yield self, config, float(runtime)


def read(path: str | Path) -> TpuGraph:
    """A npz file of either collection. UserError for anything else, in bounded memory."""
    path = Path(path)
    if path.suffix in _PROTOBUF:
        raise UserError(f"got {path.name}, a protobuf, expected .npz; the npz collections hold the same programs")
    reading.regular(path, expected="a npz file of TpuGraphs")
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
        if unpacked > MOST_BYTES:
            raise UserError(f"got {path} of {unpacked} bytes unpacked, expected at most {MOST_BYTES}")
        with np.load(path, allow_pickle=False) as file:
            has_tiles = "config_feat" in file.files
            wanted = _BOTH | (_TILE if has_tiles else _LAYOUT)
            if missing := [name for name in wanted if name not in file.files]:
                raise UserError(f"got {path} without {', '.join(missing)}, expected a tile or layout file of TpuGraphs")
            arrays = {name: file[name] for name in wanted}
    except (zipfile.BadZipFile, ValueError, OSError, EOFError, MemoryError) as error:
        raise UserError(f"got {path}, expected a npz file of TpuGraphs: {str(error)[:120]}") from error
    for name, dims in wanted.items():
        if arrays[name].ndim != dims or arrays[name].dtype.kind not in "fiu":
            raise UserError(f"got {path} whose {name} has shape {arrays[name].shape}, expected {dims} dimensions")
    graph = _graph(path.stem, arrays, has_tiles=has_tiles)
    _check(graph, path)
    return graph


def read_folder(folder: str | Path) -> Iterator[TpuGraph]:
    """Every npz file below a folder, in order of name."""
    found = sorted(Path(folder).rglob("*.npz"))
    if not found:
        raise UserError(f"got {folder} without a .npz file, expected a folder of TpuGraphs; unpack its archive there")
    yield from map(read, found)


def _graph(name: str, arrays: dict[str, NDArray[np.float32]], *, has_tiles: bool) -> TpuGraph:
    count = len(arrays["config_runtime"])
    none = np.zeros(0, dtype=np.int64)
    return TpuGraph(
        name=name,
        collection="tile" if has_tiles else "layout",
        opcodes=arrays["node_opcode"].astype(np.int64),
        features=arrays["node_feat"].astype(np.float32),
        edges=arrays["edge_index"].astype(np.int64).reshape(-1, 2)[:, ::-1].T,
        config_nodes=none if has_tiles else arrays["node_config_ids"].astype(np.int64),
        configs=arrays["config_feat" if has_tiles else "node_config_feat"].astype(np.float32),
        runtimes=arrays["config_runtime"].astype(np.float64),
        normalizers=arrays["config_runtime_normalizers"].astype(np.float64) if has_tiles else np.ones(count),
    )


def _check(graph: TpuGraph, path: Path) -> None:
    nodes, configs = len(graph.opcodes), len(graph.runtimes)
    fits = (
        len(graph.features) == nodes
        and len(graph.configs) == len(graph.normalizers) == configs > 0
        and all(part.size == 0 or 0 <= part.min() <= part.max() < nodes for part in (graph.edges, graph.config_nodes))
        and (graph.collection == "tile" or graph.configs.shape[1] == len(graph.config_nodes))
        and bool((graph.runtimes >= 0).all() and (graph.normalizers > 0).all())
    )
    if not fits:
        raise UserError(f"got {path}, whose arrays do not fit each other, expected a file of TpuGraphs; fetch it again")


def scores(graph: TpuGraph, predicted: NDArray[np.float64]) -> dict[str, float]:
    """The benchmark's own, of predictions that are low for fast: on tile the errors of the top 1, 5 and 10, on layout
    Kendall's tau."""
    if graph.collection == "layout":
        return {"kendall": stats.kendall(graph.targets, predicted)}
    return {f"top_{k}_error": stats.top_k_error(graph.targets, predicted, k) for k in (1, 5, 10)}
