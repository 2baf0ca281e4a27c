"""Programs as graphs, in the form of XLA's HLO: nouns and printer, parser, costs, canonical text, networkx view.

>>> from costmodel.graph import parse, to_text
>>> module = parse("HloModule m\\nENTRY e { ROOT x = f32[2]{0} parameter(0) }")
>>> module.computations[0].root.shape
Shape(dtype='f32', dims=(2,), layout='0', dynamic=())
"""

from costmodel.graph.canonical import Word, canonical_text, canonical_words
from costmodel.graph.costs import Cost, Facts, costs, facts
from costmodel.graph.hlo import (
    AnyShape,
    Computation,
    Instruction,
    Module,
    Shape,
    TupleShape,
    to_text,
)
from costmodel.graph.parse import parse, read
from costmodel.graph.view import view

__all__ = [
    "AnyShape",
    "Computation",
    "Cost",
    "Facts",
    "Instruction",
    "Module",
    "Shape",
    "TupleShape",
    "Word",
    "canonical_text",
    "canonical_words",
    "costs",
    "facts",
    "parse",
    "read",
    "to_text",
    "view",
]
