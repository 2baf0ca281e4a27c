"""`prune_configs_by=prune(top_k=4)`: the model ranks, few configs are benchmarked, and no launch ever fails for it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from costmodel.store import Store

pytest.importorskip("triton")


@pytest.fixture(scope="module")
def happened(tmp_path_factory):
    """The report of autotuned.py, and the store that it was given."""
    store = tmp_path_factory.mktemp("autotuned") / "store.sqlite"
    script = Path(__file__).with_name("autotuned.py")
    done = subprocess.run([sys.executable, str(script), str(store)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), store


def test_few_configs_are_benchmarked_the_default_among_them(happened):
    report, _ = happened
    assert report["all"] == {"benchmarked": 32, "warnings": [], "right": True}
    assert report["pruned"] == {"benchmarked": 4, "warnings": [], "right": True, "kept_default": True}
    assert report["same_key"]["benchmarked"] == 0
    assert report["other_key"]["benchmarked"] == 4


@pytest.mark.parametrize(
    ("case", "reason"), [("missing", "no-such-folder"), ("no_gpu", "sees no GPU"), ("slow", "took over 0.01 s")]
)
def test_whatever_is_wrong_all_configs_are_benchmarked_and_one_warning_says_why(happened, case, reason):
    report, _ = happened
    assert report[case]["benchmarked"] == 32
    assert report[case]["right"]
    assert len(report[case]["warnings"]) == 1
    assert reason in report[case]["warnings"][0]


def test_the_warning_comes_once(happened):
    assert happened[0]["missing_other_key"] == {"benchmarked": 32, "warnings": [], "right": True}


def test_an_installed_kernel_tells_the_store_what_was_benchmarked(happened):
    report, path = happened
    assert report["installed"] == {"benchmarked": 3, "warnings": [], "right": True}
    assert report["installed_again"]["benchmarked"] == 0
    with Store(path) as store:
        rows = list(store.measurements())
    assert len(rows) == 3
    assert {row.device.name for row in rows} == {"NVIDIA A100-PCIE-40GB"}  # that of the machine, not of the ranking
    assert sorted(row.latency_us for row in rows) == [1000.0, 2000.0, 3000.0]
    assert {row.variant.kernel.name for row in rows} == {"double"}


def test_the_example(happened):
    assert happened[0]["example"] == {"benchmarked": 4, "warnings": [], "right": True}


def test_what_the_model_reads_is_the_kernel_with_what_it_calls(happened):
    report, _ = happened
    assert report["source"].count("@triton.jit") == 2
    assert "autotune" not in report["source"]
    assert report["source"].index("def double") < report["source"].index("def twice")
    assert report["problem"] == ["n=8", [[[8], "bf16"], [[8], "f32"]]]
    assert report["config"] == "BLOCK=64,num_warps=1,num_stages=1,num_ctas=1"
