"""XLA as a witness: its own parser reads what ours reads, and it counts the same floating-point operations."""

import pytest
from hlo_modules import GOLDEN, ROOT, blanks

from costmodel.graph import canonical_text, facts, parse, to_text
from costmodel.workloads import load_module


@pytest.fixture(scope="session")
def xla():
    pytest.importorskip("jax")
    from jaxlib import _hlo

    return _hlo


@pytest.fixture(scope="session")
def programs(xla):
    return load_module(ROOT / "benchmarks/hlo_programs.py").programs()


@pytest.fixture(scope="session")
def witness(xla):
    """`structure` and `structure_by_xla`: computations, opcodes and operands as either parser finds them."""
    return load_module(ROOT / "benchmarks/hlo_parser.py")


@pytest.mark.parametrize("name", [name for name in GOLDEN if name != "async"])
def test_xla_reads_the_golden_texts_likewise(witness, name):
    assert witness.structure(parse(GOLDEN[name])) == witness.structure_by_xla(GOLDEN[name])


def test_xla_reads_the_async_text(xla):
    """It gives async pairs of one instruction names of their own, so only that it reads the text is compared."""
    assert xla.hlo_module_from_text(to_text(parse(GOLDEN["async"]))).name == "async"


def test_jax_programs_round_trip_and_agree_with_xla(xla, witness, programs):
    import jax

    small = [name for name in programs if not name.startswith("deep_")][::2]  # benchmarks/hlo_parser.py takes them all
    assert len(small) >= 40
    for name in small:
        function, arguments = programs[name]
        lowered = jax.jit(function).lower(*arguments)
        for text, percent in ((lowered.as_text(dialect="hlo"), False), (lowered.compile().as_text(), True)):
            module = parse(text)
            assert witness.structure(module) == witness.structure_by_xla(text), name
            printed = to_text(module, percent=percent)
            assert blanks(printed) == blanks(text), name
            assert parse(printed) == module
            again = parse(xla.hlo_module_from_text(text).to_string())  # other names, other order of computations
            assert canonical_text(again) == canonical_text(module), name


@pytest.mark.parametrize("name", ["matmul", "batched", "mlp", "gelu", "bias", "einsum", "where", "embedding_grad"])
def test_flops_are_those_that_xla_counts(programs, name):
    import jax

    function, arguments = programs[name]
    lowered = jax.jit(function).lower(*arguments)
    counted = lowered.cost_analysis()
    found = facts(parse(lowered.as_text(dialect="hlo")))
    assert found.flops == counted.get("flops", 0) + counted.get("transcendentals", 0)
