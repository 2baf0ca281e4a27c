"""The examples in docstrings, as programs: what is indented by four spaces."""

import textwrap


def example(module):
    """The code of a module's docstring, its blocks put together."""
    blocks = [line for line in module.__doc__.splitlines() if line.startswith("    ") or not line.strip()]
    return textwrap.dedent("\n".join(blocks))
