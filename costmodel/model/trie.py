"""Number strings as a trie: what they have in common is run once for all of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn


class Trie(nn.Module):
    """G strings of n tokens as a tree of K nodes: the distinct beginnings of 1 .. n - 1 tokens, parents first.

    tokens (K,): each node's last token; parents (K,): the node before it, -1 for the root; states (1 + K,): the
    grammar's at the root and behind each node. at, then (G, n): where each token of a string is read off (0 is the
    root, 1 + k node k) and which it is. A module, so that its tables are where the head's are; nothing is learned.
    """

    def __init__(self, strings: Sequence[Sequence[int]], next_state: np.ndarray) -> None:
        super().__init__()
        node: dict[tuple[int, ...], int] = {(): -1}
        states = [0]
        for string in strings:
            for k in range(1, len(string)):
                begun = tuple(string[:k])
                if begun not in node:
                    node[begun] = len(node) - 1
                    states.append(int(next_state[states[1 + node[begun[:-1]]], begun[-1]]))
        nodes = list(node)[1:]
        self.parents = [node[begun[:-1]] for begun in nodes]
        at = [[1 + node[tuple(string[:k])] for k in range(len(string))] for string in strings]
        tables = {
            "tokens": [begun[-1] for begun in nodes],
            "states": states,
            "at": at,
            "then": list(map(list, strings)),
        }
        for name, table in tables.items():
            self.register_buffer(name, torch.tensor(table, dtype=torch.long), persistent=False)
        self.tokens: Tensor
        self.states: Tensor
        self.at: Tensor
        self.then: Tensor

    def log_probabilities(self, logits: Tensor, legal: Tensor) -> Tensor:
        """logits (M, 1 + K, V) at the root and behind each node, legal (states, V) -> of each string (M, G)."""
        log_p = logits.float().masked_fill(~legal[self.states], float("-inf")).log_softmax(-1)
        return log_p[:, self.at, self.then].sum(-1)
