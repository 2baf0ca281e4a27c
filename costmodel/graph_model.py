"""The text model of program latency: a sum over lines of a frozen floor times a multiplier that is read from the text.

    model = GraphModel(GraphConfig())
    model.fit(rows)                                     # costmodel.graph_rows
    costs_us = model.line_costs([(program, "eager")])   # one array per program; its sum is the latency
    model.prediction(costs_us[0].sum())                 # with calibrated intervals

Nothing but text goes in: the lines of `graph_lines` as tokens, numbers as digits and a magnitude. Trained on totals
alone (no line has a label): smooth L1 error of log2 slowdown and the order of slowdowns within a batch. Members of
different seeds are averaged in log2 at every line.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

from costmodel import conformal, graph_floor, reading
from costmodel.graph_lines import Program
from costmodel.graph_reader import Batch, LineReader, batch_of, log2_slowdowns
from costmodel.graph_rows import Row, components, random_split
from costmodel.model import foreign
from costmodel.model.losses import RANK_WEIGHT, rank_loss
from costmodel.records import Prediction, UserError
from costmodel.tokens import TextTokenizer

FORMAT = 1
KIND = "costmodel-graph"
LEVELS = tuple(round(0.05 * k, 2) for k in range(1, 20))  # of the calibrated intervals
CALIBRATED_FROM = 150  # rows; a seventh of them is kept for the intervals
MOST_TOKENS = 256  # of a line
WARMUP = 0.05  # of the steps
_MOST = {"hidden": 1024, "layers": 16, "vocab_size": 1 << 16, "members": 64}
Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class GraphConfig:
    """Sizes and steps. `batch` counts programs."""

    hidden: int = 64
    layers: int = 2
    vocab_size: int = 768
    members: int = 1
    steps: int = 1500
    batch: int = 16
    adamw_lr: float = 3e-3
    muon_lr: float = 1e-2
    dropout: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if name not in ("seed", "dropout", "steps") and value <= 0:
                raise UserError(f"got {name}={value}, expected more than 0")
        for name, most in _MOST.items():
            if getattr(self, name) > most:
                raise UserError(f"got {name}={getattr(self, name)}, expected at most {most}")


@dataclass(slots=True)
class GraphModel:
    """See the module. `spread` holds half widths in log2 at LEVELS, () where too few rows were there to calibrate."""

    config: GraphConfig = field(default_factory=GraphConfig)
    engines: tuple[str, ...] = ()
    spread: tuple[float, ...] = ()
    tokenizer: TextTokenizer | None = None
    members: list[LineReader] = field(default_factory=list)

    # ------------------------------------------------------------------------------------------------------- training

    def fit(self, rows: Sequence[Row]) -> None:
        """Train every member from its seed. Of many rows some are kept for the intervals, whole skeletons of them."""
        train, kept = list(rows), list[Row]()
        if len(rows) >= CALIBRATED_FROM:
            train, kept = random_split(rows, fraction=1 / 7, seed=self.config.seed)
        self.engines = tuple(sorted({row.engine for row in rows}))
        texts = dict.fromkeys(line.text for row in train for line in row.program.lines)
        self.tokenizer = TextTokenizer.train([*texts, *map(_engine_text, self.engines)],
                                             vocab_size=self.config.vocab_size)  # fmt: skip
        self.members = [self._network(self.config.seed + n) for n in range(self.config.members)]
        encoded = _Encoded(self.tokenizer, [(row.program, row.engine) for row in train])
        z = torch.tensor([row.slowdown for row in train], dtype=torch.float32)
        for n, member in enumerate(self.members):
            self._train(member, encoded, z, seed=self.config.seed + n)
        self.spread = self._calibrated(kept) if kept else ()

    def _network(self, seed: int) -> LineReader:
        if self.tokenizer is None:
            raise UserError("got a model that was not trained, expected `fit` or `load` before")
        c = self.config
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return LineReader(self.tokenizer.vocab_size, hidden=c.hidden, layers=c.layers, dropout=c.dropout)

    def _train(self, member: LineReader, encoded: _Encoded, z: torch.Tensor, *, seed: int) -> None:
        rng = np.random.default_rng(seed)
        optimizers = _optimizers(member.train(), self.config)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for step, chosen in enumerate(_drawn(rng, len(z), self.config.batch, self.config.steps)):
                share = _lr_share(step, self.config.steps)
                batch = encoded.batch(chosen)
                predicted, wanted = log2_slowdowns(batch, member(batch)), z[torch.as_tensor(chosen)]
                loss = F.smooth_l1_loss(predicted, wanted) + RANK_WEIGHT * rank_loss(predicted, wanted)
                loss.backward()
                nn.utils.clip_grad_norm_(member.parameters(), 1.0)
                for optimizer in optimizers:
                    for group in optimizer.param_groups:
                        group["lr"] = group["initial_lr"] * share
                    optimizer.step()
                    optimizer.zero_grad()
        member.eval()

    def _calibrated(self, kept: Sequence[Row]) -> tuple[float, ...]:
        """Split-conformal half widths, a component (see graph_rows) weighing 1 as that of a new program does."""
        off = np.abs(np.log2(self.predict(kept)) - np.log2([row.latency_us for row in kept]))
        weights = conformal.space_weights(components(kept))
        return tuple(conformal.conformal_quantile(off, 1 - level, weights=weights) for level in LEVELS)

    # ----------------------------------------------------------------------------------------------------- predicting

    def predict(self, rows: Sequence[Row]) -> Array:
        """Latencies in microseconds, as opponents do."""
        return np.array([costs.sum() for costs in self.line_costs([(row.program, row.engine) for row in rows])])

    def line_costs(self, asked: Sequence[tuple[Program, str]]) -> list[Array]:
        """For each (program, engine) the microseconds of its lines. UserError for an engine that training had not."""
        if self.tokenizer is None or not self.members:
            raise UserError("got a model that was not trained, expected `fit` or `load` before")
        if unknown := [engine for _, engine in asked if engine not in self.engines]:
            raise UserError(f"got engine {unknown[0]!r}, expected one of {', '.join(self.engines)}")
        answers: list[Array] = []
        for start in range(0, len(asked), self.config.batch):
            some = asked[start : start + self.config.batch]
            batch = _Encoded(self.tokenizer, some).batch(range(len(some)))
            with torch.no_grad():
                each = torch.stack([member(batch) for member in self.members]).double().mean(dim=0)
            ends = np.cumsum([len(program.lines) for program, _ in some])[:-1]
            floors = np.concatenate([[line.floor_us for line in program.lines] for program, _ in some])
            answers += np.split(floors * np.exp2(each.numpy()), ends)
        return answers

    def prediction(self, latency_us: float) -> Prediction:
        """The distribution around a predicted latency. Without calibration it is a guess of a doubling, and says so."""
        if not self.spread:
            support = tuple(latency_us * 2.0 ** (k / 10) for k in range(-10, 11))
            return Prediction(support, (1 / 21,) * 21, trust=False, reason="too few programs to calibrate intervals")
        widest = max(s for s in self.spread if np.isfinite(s)) * 1.5
        widths = [*(min(s, widest) for s in self.spread), widest]
        points = [*(-w for w in reversed(widths)), *widths]
        return Prediction(tuple(latency_us * 2.0**p for p in points), (0.5 / len(widths),) * len(points))

    # --------------------------------------------------------------------------------------------------------- saving

    def save(self, folder: str | Path) -> None:
        """config.json, tokenizer.json and model.safetensors (float16; tensors of all members stacked)."""
        if self.tokenizer is None:
            raise UserError("got a model that was not trained, expected `fit` before it is saved")
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        states = [member.state_dict() for member in self.members]
        tensors = {name: torch.stack([state[name] for state in states]).half() for name in states[0]}
        save_file(tensors, folder / "model.safetensors")
        (folder / "model.safetensors").chmod(0o644)  # safetensors writes for its owner only
        self.tokenizer.save(folder)
        document = {
            "kind": KIND, "format": FORMAT, "config": asdict(self.config),
            "engines": list(self.engines), "floor": graph_floor.constants(),
            "spread": [None if np.isinf(s) else s for s in self.spread],
        }  # fmt: skip
        (folder / "config.json").write_text(json.dumps(document, indent=2) + "\n")

    @staticmethod
    def load(folder: str | Path) -> GraphModel:
        """The inverse of `save`, but for the rounding of weights. UserError for anything else."""
        folder = Path(folder)
        document = reading.json_object(folder / "config.json", expected="the config.json of a graph model",
                                       most_bytes=1 << 20)  # fmt: skip
        _check(document, folder)
        try:
            model = GraphModel(
                config=GraphConfig(**document["config"]), engines=tuple(map(str, document["engines"])),
                spread=tuple(float("inf") if s is None else float(s) for s in document["spread"]),
                tokenizer=TextTokenizer.load(folder),
            )  # fmt: skip
        except (TypeError, ValueError, KeyError) as error:
            raise UserError(f"got {folder / 'config.json'}, which is damaged ({error}); fetch it again") from error
        model._read_weights(folder / "model.safetensors")
        return model

    def _read_weights(self, path: Path) -> None:
        there = foreign.shapes_of(path)
        made = self._network(0)
        wanted = {name: (self.config.members, *x.shape) for name, x in made.state_dict().items()}
        if there != wanted:
            raise UserError(f"got {path}, whose tensors are not those of its config.json; fetch the folder again")
        tensors = load_file(path)
        for n in range(self.config.members):
            member = self._network(0)
            member.load_state_dict({name: x[n].float() for name, x in tensors.items()})
            self.members.append(member.eval())


def _check(document: dict[str, Any], folder: Path) -> None:
    if document.get("kind") != KIND:
        raise UserError(f"got {folder}, which holds no graph model, expected one that benchmarks/graphs.py saved")
    if document.get("format") != FORMAT:
        raise UserError(f"got {folder} in format {document.get('format')!r}, expected {FORMAT}; update costmodel")
    if document.get("floor") != graph_floor.constants():
        raise UserError(f"got {folder}, trained against another floor, expected {graph_floor.constants()}; train anew")


def _engine_text(engine: str) -> str:
    return f"engine {engine}"


class _Encoded:
    """Programs as tokens; lines of equal text are encoded once."""

    def __init__(self, tokenizer: TextTokenizer, asked: Sequence[tuple[Program, str]]) -> None:
        numbers: dict[str, int] = {}
        self.texts: list[tuple[int, ...]] = []

        def number(text: str) -> int:
            if text not in numbers:
                numbers[text] = len(numbers)
                self.texts.append(tokenizer.encode_measured(text)[:MOST_TOKENS])
            return numbers[text]

        self.programs = [
            (
                [number(line.text) for line in program.lines],
                number(_engine_text(engine)),
                np.log2([line.floor_us for line in program.lines]).tolist(),
            )
            for program, engine in asked
        ]

    def batch(self, chosen: Sequence[int] | NDArray[np.int64]) -> Batch:
        return batch_of([self.programs[n] for n in chosen], self.texts)


def _drawn(rng: np.random.Generator, count: int, batch: int, steps: int) -> Iterator[NDArray[np.int64]]:
    """Batches of one shuffled pass after another."""
    order = rng.permutation(count)
    at = 0
    for _ in range(steps):
        if at + batch > count:
            order, at = rng.permutation(count), 0
        yield order[at : at + batch]
        at += batch


def _lr_share(step: int, steps: int) -> float:
    """Linear warm-up, then a straight line down to 2 %."""
    warm = max(1, round(WARMUP * steps))
    return (step + 1) / warm if step < warm else max(0.02, 1 - (step - warm) / max(1, steps - warm))


def _optimizers(network: LineReader, config: GraphConfig) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks, AdamW for the rest."""
    matrices = [p for p in network.blocks.parameters() if p.ndim == 2]
    inside = {id(p) for p in matrices}
    others = [p for p in network.parameters() if id(p) not in inside]
    found: list[torch.optim.Optimizer] = [
        torch.optim.Muon(matrices, lr=config.muon_lr, momentum=0.95, weight_decay=0.05),
        torch.optim.AdamW(others, lr=config.adamw_lr, betas=(0.9, 0.98), weight_decay=0.02),
    ]
    for optimizer in found:
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
    return found
