"""Torch programs as HLO: the ATen operators that eager torch runs, each one instruction or one fusion.

program = costmodel.aten.trace(model, inputs)
program.module       # costmodel.graph's Module, and `to_text(program.module)`
program.code         # the same operators as Python text, for a process that runs them
"""

from costmodel.aten.program import Argument, Program, trace

__all__ = ["Argument", "Program", "trace"]
