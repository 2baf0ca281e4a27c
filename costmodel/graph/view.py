"""A module as a networkx graph, for looking at and for tools that know graphs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from costmodel.graph.costs import costs
from costmodel.graph.hlo import Module

if TYPE_CHECKING:
    import networkx as nx


def view(module: Module) -> nx.MultiDiGraph:
    """Nodes are (computation, instruction) with `opcode`, `shape` (text), `bytes` of the result, and for instructions
    that run (`costmodel.graph.costs`) `flops`, `bytes_read`, `bytes_written` and `count`.

    Edges go from an operand to its user (kind "operand", with its `position`), from a caller to the parameters of what
    it calls and from the roots of that to the caller (kind "call").
    """
    import networkx as nx  # slow to import, and only for those who look

    graph = nx.MultiDiGraph(name=module.name)
    for computation in module.computations:
        for i in computation.instructions:
            node = (computation.name, i.name)
            graph.add_node(node, opcode=i.opcode, shape=str(i.shape), bytes=i.shape.bytes, root=i is computation.root)
            for position, operand in enumerate(i.operands):
                graph.add_edge((computation.name, operand), node, kind="operand", position=position)
    for computation in module.computations:
        for i in computation.instructions:
            node = (computation.name, i.name)
            for called in i.called:
                callee = module.by_name[called]
                for parameter in callee.parameters:
                    graph.add_edge(node, (called, parameter.name), kind="call", position=int(parameter.literal))
                graph.add_edge((called, callee.root.name), node, kind="call", position=0)
    for cost in costs(module):
        graph.nodes[cost.computation, cost.name].update(
            flops=cost.flops, bytes_read=cost.bytes_read, bytes_written=cost.bytes_written, count=cost.count
        )
    return graph
