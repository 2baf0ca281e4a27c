"""The opponent that others use on programs: a graph network on hand-made features, after TpuGraphs' GraphSAGE baseline.

A node is an instruction: an embedding of its kind and the logarithms of its costs. Layers of messages (GraphSAGE with
mean aggregation, along the edges and against them, residual; Hamilton et al., 2017), the sum over nodes, their mean and
their mean by floors, and a small network to log2(latency / floor). The message passing is two `index_add_`: no library
of graph networks is needed for it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from costmodel.graph_baselines import log2_floors
from costmodel.graph_lines import NUMBERS
from costmodel.graph_rows import Row
from costmodel.measure.protocol import ENGINES
from costmodel.model.losses import RANK_WEIGHT, rank_loss

UNKNOWN = 0
BATCH = 24  # programs of a step


class SageLayer(nn.Module):
    """x (n, d) and edges (2, m) -> (n, d)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.own, self.before, self.after = (nn.Linear(width, width) for _ in range(3))

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        y = self.norm(x)
        source, target = edges
        return x + F.gelu(self.own(y) + self.before(_mean(y, source, target)) + self.after(_mean(y, target, source)))


def _mean(x: Tensor, source: Tensor, target: Tensor) -> Tensor:
    """For each node the mean over its neighbours; 0 where it has none."""
    total = torch.zeros_like(x).index_add_(0, target, x[source])
    count = torch.zeros(len(x), dtype=x.dtype).index_add_(0, target, torch.ones(len(target), dtype=x.dtype))
    return total / count.clamp_min(1)[:, None]


class Sage(nn.Module):
    """The network: see the module."""

    def __init__(self, kinds: int, *, width: int = 64, layers: int = 3) -> None:
        super().__init__()
        self.kind, self.numbers = nn.Embedding(kinds, width), nn.Linear(len(NUMBERS), width)
        self.layers = nn.ModuleList(SageLayer(width) for _ in range(layers))
        self.engine = nn.Embedding(len(ENGINES), width)
        self.out = nn.Sequential(nn.Linear(4 * width, width), nn.GELU(), nn.Linear(width, 1))

    def forward(self, kinds: Tensor, numbers: Tensor, edges: Tensor, graph: Tensor, engine: Tensor) -> Tensor:
        """kinds (n,), numbers (n, NUMBERS), edges (2, m), graph (n,) the number of each node's program, engine (g,) ->
        (g,) log2 slowdowns."""
        x = self.kind(kinds) + self.numbers(numbers / 16) + self.engine(engine)[graph]
        for layer in self.layers:
            x = layer(x, edges)
        count = torch.zeros(len(engine)).index_add_(0, graph, torch.ones(len(graph)))[:, None]
        total = torch.zeros(len(engine), x.shape[1]).index_add_(0, graph, x)
        weight = torch.exp2(numbers[:, -1:]) - 1  # by floors, so that the pool knows where the time goes
        weighted = torch.zeros_like(total).index_add_(0, graph, x * weight)
        heavy = weighted / torch.zeros(len(engine), 1).index_add_(0, graph, weight).clamp_min(1e-6)
        pooled = torch.cat([total / count, heavy, total / 64, self.engine(engine)], dim=-1)
        return self.out(pooled)[:, 0]


class GraphNetwork:
    """An Opponent (see graph_baselines)."""

    def __init__(self, *, seed: int = 0, steps: int = 1200, width: int = 64, layers: int = 3) -> None:
        self.seed, self.steps, self.width, self.layers = seed, steps, width, layers
        self.kinds: dict[str, int] = {}

    def fit(self, rows: Sequence[Row]) -> None:
        seen = Counter(kind for row in rows for kind in set(row.program.nodes.kinds))
        self.kinds = {kind: n + 1 for n, (kind, times) in enumerate(seen.most_common()) if times > 1}
        z = torch.tensor([row.slowdown for row in rows], dtype=torch.float32)
        rng = np.random.default_rng(self.seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            self.network = Sage(len(self.kinds) + 1, width=self.width, layers=self.layers).train()
        self.centre = float(z.mean())
        optimizer = torch.optim.AdamW(self.network.parameters(), lr=3e-3, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: min(10 * (step + 1) / self.steps, 1.0, 1.02 - step / self.steps)
        )
        for _ in range(self.steps):
            chosen = rng.permutation(len(rows))[:BATCH]
            predicted = self._forward([rows[n] for n in chosen])
            wanted = z[torch.as_tensor(chosen)]
            loss = F.smooth_l1_loss(predicted, wanted) + RANK_WEIGHT * rank_loss(predicted, wanted)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        self.network.eval()

    def predict(self, rows: Sequence[Row]) -> NDArray[np.float64]:
        with torch.no_grad():
            parts = [self._forward(rows[n : n + BATCH]).numpy() for n in range(0, len(rows), BATCH)]
        return np.asarray(2 ** (log2_floors(rows) + np.concatenate(parts)))

    def _forward(self, rows: Sequence[Row]) -> Tensor:
        kinds, numbers, edges, graph, start = [], [], [], [], 0
        for n, row in enumerate(rows):
            nodes = row.program.nodes
            kinds += [self.kinds.get(kind, UNKNOWN) for kind in nodes.kinds]
            numbers.append(nodes.numbers)
            edges.append(nodes.edges + start)
            graph += [n] * len(nodes.kinds)
            start += len(nodes.kinds)
        engine = torch.tensor([ENGINES.index(row.engine) if row.engine in ENGINES else 0 for row in rows])
        told = self.network(
            torch.tensor(kinds), torch.from_numpy(np.concatenate(numbers)),
            torch.from_numpy(np.concatenate(edges, axis=1)), torch.tensor(graph), engine,
        )  # fmt: skip
        return self.centre + told
