"""Orders in which what is needed stands before what needs it. No recursion: calls and operands may nest deeply."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from costmodel.graph.hlo import Computation, Instruction, Module


def postorder(starts: Iterable[str], needs: Callable[[str], Sequence[str]]) -> list[str]:
    """What the starts need, each once, after what it needs itself and in the order in which that is named."""
    done: dict[str, None] = {}
    for start in starts:
        stack = [start]
        while stack:
            waiting = [] if stack[-1] in done else [name for name in needs(stack[-1]) if name not in done]
            if waiting:
                stack += reversed(waiting)
            else:
                done[stack.pop()] = None
    return list(done)


def callees_first(module: Module) -> list[Computation]:
    """Each computation after those that it calls."""

    def called(name: str) -> list[str]:
        return [callee for i in module.by_name[name].instructions for callee in i.called]

    return [module.by_name[name] for name in postorder(module.by_name, called)]


def operands_first(computation: Computation) -> list[Instruction]:
    """From the root, operands in their order; what the root does not need is left out."""
    order = postorder([computation.root.name], lambda name: computation.by_name[name].operands)
    return [computation.by_name[name] for name in order]
