"""Repeats of a sequence, folded: `a b c b c b c d` is `a 3(b c) d`, and again inside the brackets."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

GRAM = 6  # longer repeats are looked for where this many elements recur
CANDIDATES = 48  # of those, the nearest
LEAST_SAVED = 4  # elements; brackets and a number cost about as much
LEAST_SAVED_BY_SKELETON = 12  # what differs is written for each turn
_PRIME, _BASE = (1 << 61) - 1, 1_000_003


@dataclass(frozen=True, slots=True)
class Repeat:
    """`inside`, of `length` elements when unfolded, `times` times."""

    times: int
    length: int
    inside: list[int | Repeat]


def folded(sequence: Sequence[Hashable], skeletons: Sequence[Hashable] | None = None) -> list[int | Repeat]:
    """Positions of the sequence and repeats of such, from left to right; at each place the repeat that saves most.

    Where elements have `skeletons`, what is left is folded again where those repeat: in the turns of such a repeat,
    elements at the same place are equal but for what their skeletons leave out.
    """
    tree = _Folder(sequence, LEAST_SAVED).fold(0, len(sequence))
    if skeletons is None:
        return tree
    again = _Folder([_skeleton(node, skeletons) for node in tree], LEAST_SAVED_BY_SKELETON).fold(0, len(tree))
    return [_in_elements(node, tree) for node in again]


def size(node: int | Repeat) -> int:
    """In elements, unfolded."""
    return node.times * node.length if isinstance(node, Repeat) else 1


def _skeleton(node: int | Repeat, skeletons: Sequence[Hashable]) -> Hashable:
    if isinstance(node, Repeat):
        return node.times, tuple(_skeleton(inner, skeletons) for inner in node.inside)
    return skeletons[node]


def _in_elements(node: int | Repeat, tree: list[int | Repeat]) -> int | Repeat:
    """A node over positions in a folded sequence as one over the sequence; repeats within such are written out."""
    if not isinstance(node, Repeat):
        return tree[node]
    first: int | Repeat = node
    while isinstance(first, Repeat):
        first = first.inside[0]
    turn = tree[first : first + node.length]
    return Repeat(node.times, sum(map(size, turn)), turn)


class _Folder:
    def __init__(self, sequence: Sequence[Hashable], least_saved: int) -> None:
        ids: dict[Hashable, int] = {}
        self.values = values = [ids.setdefault(value, len(ids) + 1) for value in sequence]
        self.least_saved = least_saved
        self.hashes, self.powers = [0], [1]
        for value in values:
            self.hashes.append((self.hashes[-1] * _BASE + value) % _PRIME)
            self.powers.append(self.powers[-1] * _BASE % _PRIME)
        # next[i]: where the GRAM elements at i recur next
        self.next: dict[int, int] = {}
        last: dict[int, int] = {}
        for at in range(len(values) - GRAM, -1, -1):
            gram = self.hash(at, at + GRAM)
            if gram in last:
                self.next[at] = last[gram]
            last[gram] = at

    def hash(self, start: int, stop: int) -> int:
        return (self.hashes[stop] - self.hashes[start] * self.powers[stop - start]) % _PRIME

    def fold(self, start: int, stop: int) -> list[int | Repeat]:
        found: list[int | Repeat] = []
        at = start
        while at < stop:
            period, times = self.best(at, stop)
            if times > 1:
                found.append(Repeat(times, period, self.fold(at, at + period)))
                at += period * times
            else:
                found.append(at)
                at += 1
        return found

    def best(self, at: int, stop: int) -> tuple[int, int]:
        """The period at this place whose repeats save most elements, the shortest of equals; and its times."""
        periods = list(range(1, GRAM))
        other = at
        for _ in range(CANDIDATES):
            other = self.next.get(other, stop)
            if at + 2 * (other - at) > stop:
                break
            periods.append(other - at)
        best, saved = (1, 1), self.least_saved - 1
        for period in periods:
            times = self.times(at, period, stop)
            if (times - 1) * period > saved:
                best, saved = (period, times), (times - 1) * period
        period, times = best
        end = at + (times - 1) * period  # hashes can lie
        return best if self.values[at:end] == self.values[at + period : end + period] else (1, 1)

    def times(self, at: int, period: int, stop: int) -> int:
        if at + 2 * period > stop or self.hash(at, at + period) != self.hash(at + period, at + 2 * period):
            return 1
        low, high = 2, (stop - at) // period  # as a run: equal to itself moved by a period
        while low < high:
            middle = (low + high + 1) // 2
            length = (middle - 1) * period
            if self.hash(at, at + length) == self.hash(at + period, at + period + length):
                low = middle
            else:
                high = middle - 1
        return low
