"""What the gate says of a change that no model can price: compile facts for a GPU, a floor for a CPU."""

import numpy as np
import pytest

from costmodel import devices
from costmodel.gate import changes, facts
from costmodel.measure.gpu_compiling import GpuBuild, Launched
from costmodel.records import Prediction
from costmodel.template import write_template

H200 = devices.find("H200")
FACTS = {"registers": 40, "shared_bytes": 1024, "threads_per_block": 128, "local_loads": 0, "instructions": 200}


def build(**changed):
    told = tuple((name, float(value)) for name, value in {**FACTS, **changed}.items())
    return GpuBuild("compiled", (Launched("k", told, {}, (), {}),))


FAILED, LATE = GpuBuild("compile_error", error="no such thing"), GpuBuild("timeout", error="over 120 s")
LARGE = {"shared_bytes": 1 << 20}


@pytest.mark.parametrize(
    ("base", "head", "broken", "told"),
    [
        (build(), build(), False, "as before"),
        (build(), build(registers=72, local_loads=3), False, "compiled: registers 40 -> 72, spills 0 -> 3"),
        (build(), build(**LARGE), True, "it no longer fits: 1048576 B of shared memory a block"),
        (build(), FAILED, True, "it no longer compiles: no such thing"),
        (build(), LATE, False, "head: over 120 s"),
        (build(**LARGE), build(**LARGE), False, "base: 1048576 B"),
        (FAILED, build(), False, "base: no such thing; head: compiles"),
    ],
)
def test_two_builds_beside_each_other(base, head, broken, told):
    known = facts.compared(base, head, H200)
    assert known.broken == broken
    assert told in known.told


class Doubtful:
    """A model that is asked about what it never saw."""

    def predict(self, variants, device):
        return [Prediction((1.0,), (1.0,), trust=False, reason="never seen") for _ in variants]

    def slowdowns(self, pairs, device):
        return np.ones((len(pairs), 4))


@pytest.mark.parametrize(
    ("old", "new", "verdict", "reason"),
    [
        ("2.0 * x", "2.0 * x * x", "inconclusive", "never seen; compiled: "),
        ("2.0 * x", "2.0 * tl.no_such_function(x)", "regressed", "it no longer compiles: "),
    ],
)
def test_a_triton_kernel_that_no_model_knows_is_compiled(tmp_path, old, new, verdict, reason):
    pytest.importorskip("triton")
    for side in ("base", "head"):
        (tmp_path / side).mkdir()
        (file,) = write_template(tmp_path / side / "mine.py")
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))
    (change,) = changes.changed_kernels(tmp_path / "head", tmp_path / "base", {"mine.py": 7})
    found = changes.predict([change], Doubtful(), H200, threshold=0.05, probable=0.8)
    assert {f.verdict for f in found} == {verdict}
    assert all(f.reason.startswith(reason) for f in found), found[0].reason
    assert verdict == "regressed" or all("instructions" in f.reason for f in found)
    assert (found[0].path, found[0].line) == ("mine.py", 7)
    assert found[0].sentence.startswith(verdict)
