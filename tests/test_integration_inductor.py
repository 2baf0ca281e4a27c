"""Inductor's templates are pruned before their code is written, and what was found best goes into its lookup table."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from examples import example

from costmodel.integrations import inductor, inductor_table
from costmodel.records import Config, Kernel, Problem, TensorSpec, UserError, Variant

pytest.importorskip("triton")
KEY = "((torch.float16, [1024, 512], [512, 1]), (torch.float16, [512, 2048], [2048, 1]))+mm"


@pytest.fixture(scope="module")
def happened():
    script = Path(__file__).with_name("inductor_pruned.py")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_fewer_templates_are_written_the_default_among_them(happened):
    everything, pruned = happened["all"], happened["pruned"]
    assert len(everything["written"]) > 15
    assert len(pruned["written"]) == 5  # the default's text is what the model reads, then the four that are kept
    assert pruned["written"][0] == pruned["written"][1] == everything["written"][0]
    assert len({json.dumps(config) for config in pruned["written"]}) == pruned["offered"] == 4
    assert all(config in everything["written"] for config in pruned["written"])
    assert pruned["warnings"] == []
    assert pruned["fused"]


def test_whatever_is_wrong_every_choice_is_kept_and_one_warning_says_why(happened):
    for case in ("missing", "missing_again"):
        assert happened[case]["offered"] == happened["all"]["offered"]
        assert happened[case]["fused"]
    (told,) = happened["missing"]["warnings"]
    assert "all choices are kept" in told
    assert "no-such-folder" in told
    assert happened["missing_again"]["warnings"] == []


def test_the_table_is_predicted_until_something_is_measured(happened):
    (predicted,), (measured,) = happened["predicted_table"][KEY], happened["measured_table"][KEY]
    assert predicted["template_id"] == measured["template_id"] == "triton::mm"
    assert len(predicted["template_hash"]) == 64
    tile = {name: predicted[name] for name in ("BLOCK_M", "BLOCK_N", "BLOCK_K", "num_warps", "num_stages")}
    assert tile in happened["pruned"]["written"]
    fastest = happened["last_offered"]
    assert {name: fastest[name] for name in measured if name in fastest} == {
        name: value for name, value in measured.items() if not name.startswith("template_")
    }


def test_torch_takes_the_table(happened):
    (measured,) = happened["measured_table"][KEY]
    (written,) = happened["looked_up"]["written"]
    assert written == {name: measured[name] for name in written}
    (written,) = happened["stored"]["written"]
    assert written == {"BLOCK_M": 256, "BLOCK_N": 64, "BLOCK_K": 32, "num_warps": 4, "num_stages": 3}


def test_the_table_of_what_is_stored():
    scope = {}
    exec(example(inductor_table), scope)
    (entry,) = json.loads(scope["text"])[KEY]
    assert entry["EVEN_K"] is True
    assert entry["BLOCK_M"] == 128
    bias = (TensorSpec((8, 48), "bf16"), TensorSpec((8, 100), "bf16"), TensorSpec((100, 48), "bf16"))
    odd = Variant(Kernel("mm", "triton", None), Problem("addmm", bias, (("K", 100),), 0, 0), Config.of(BLOCK_K=32))
    table = inductor_table.lookup_table([("addmm", odd), ("addmm", odd)], device="NVIDIA H200")
    ((key, entries),) = table.items()
    assert key == (
        "NVIDIA H200+((torch.bfloat16, [8, 48], [48, 1]), (torch.bfloat16, [8, 100], [100, 1]), "
        "(torch.bfloat16, [100, 48], [48, 1]))+addmm"
    )
    assert [entry["EVEN_K"] for entry in entries] == [False, False]
    with pytest.raises(UserError, match="got operation 'conv', expected one of mm, addmm"):
        inductor_table.lookup_table([("conv", odd)])


def test_the_example_where_there_is_no_gpu():
    """It compiles as ever: a CPU has no Triton templates to prune."""
    script = f"import torch\nx, weight = torch.ones(8, 16), torch.ones(16, 4)\n{example(inductor)}\n"
    script += "assert torch.equal(product(x, weight), x @ weight) and table == {}"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "costmodel" not in done.stderr
