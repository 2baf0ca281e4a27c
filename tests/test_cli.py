"""The commands as a user types them: answers, JSON, and one line for a mistake."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from costmodel.store import Store

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = ("doctor", "devices", "new", "inspect", "collect", "import", "train", "ablate", "update", "calibrate",
            "evaluate", "predict",
            "rank", "explain", "tune", "replay", "report")  # fmt: skip
STORE = ("ls", "merge", "export", "check", "repair", "backup")
GRAPH = ("show",)
TABLE = ("build", "show", "apply")


def costmodel(*arguments, cwd=ROOT, **environment):
    return subprocess.run(
        [sys.executable, "-c", "from costmodel.cli import main; main()", *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        env=dict(os.environ, PYTHONPATH=str(ROOT), **environment),
        timeout=300,
    )


def document(done):
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def refused(done, *words):
    """One line on standard error, exit code 2, no traceback."""
    assert done.returncode == 2
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("costmodel: ")
    for word in words:
        assert word in lines[0]


@pytest.mark.parametrize(
    "command",
    [
        *((c,) for c in COMMANDS),
        *(("store", c) for c in STORE),
        *(("table", c) for c in TABLE),
        *(("graph", c) for c in GRAPH),
    ],
)
def test_every_command_has_help_with_an_example(command):
    done = costmodel(*command, "--help")
    assert done.returncode == 0
    assert command == ("new",) or "--json" in done.stdout
    assert f"costmodel {' '.join(command)}" in done.stdout
    assert "Example" in done.stdout


def test_predict_answers_in_json():
    rows = document(costmodel("predict", "kernels/cpp/matmul.cpp", "--problem", "M=200,N=100", "--json"))
    assert len(rows) == 1
    assert 0 < rows[0]["q05_us"] <= rows[0]["median_us"] <= rows[0]["q95_us"]
    assert 0 <= rows[0]["p_fail"] <= 1
    assert set(rows[0]["config"]) >= {"THREADS"}


def test_predict_follows_the_problem_size():
    small, large = (
        document(costmodel("predict", "matmul", "--problem", size, "--json"))[0]["median_us"]
        for size in ("M=128,N=128,K=128", "M=1024,N=1024,K=1024")
    )
    assert large > 20 * small


def test_rank_orders_several_sources():
    rows = document(costmodel("rank", "matmul", "matmul__packed", "--top", "7", "--json"))
    medians = [row["median_us"] for row in rows]
    assert len(rows) == 7
    assert medians == sorted(medians)


def test_a_table_is_for_people_and_says_whether_to_trust():
    done = costmodel("rank", "softmax", "--top", "3")
    assert done.returncode == 0, done.stderr
    assert "trust" in done.stdout


def test_doctor_and_devices():
    facts = document(costmodel("doctor", "--json"))
    assert {"device", "compiler", "torch", "shadowing"} <= set(facts)
    sheets = document(costmodel("devices", "--json"))
    assert len(sheets) > 40


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("predict", "no_such_kernel"), ("no kernel 'no_such_kernel'", "matmul")),
        (("predict", "missing.cpp"), ("no file missing.cpp",)),
        (("predict", "matmul", "--problem", "huge"), ("no problem 'huge'", "square")),
        (("predict", "matmul", "--problem", "Q=3"), ("got size 'Q'",)),
        (("predict", "matmul", "--problem", "M=-3"), ("got M=-3", "positive")),
        (("predict", "matmul", "--config", "THREADS"), ("got 'THREADS'", "NAME=VALUE")),
        (("predict", "matmul", "--config", "THREADS=77"), ("got THREADS=77", "expected one of")),
        (("predict", "matmul", "--device", "no such gpu"), ("no such gpu",)),
        (("predict", "matmul", "--model", "/nowhere"), ("/nowhere",)),
        (("rank", "matmul", "softmax"), ("softmax", "another source of matmul")),
        (("tune", "matmul", "--budget", "many"), ("got budget 'many'", "8m")),
        (("collect", "matmul", "--budget", "40"), ("got budget '40'", "time")),
        (("collect", "graphs", "--offline", "--count", "1"), ("--offline", "leave it out")),
        (("collect", "graphs", "--configs", "3", "--count", "1"), ("--configs", "leave it out")),
        (("evaluate", "--data", "missing.sqlite"), ("no file missing.sqlite",)),
        (("train", "--objective", "guess"), ("got objective 'guess'", "next-token")),
        (("new", "matmul.txt"), ("matmul.txt", "NAME.cpp")),
        (("store", "merge", "missing.sqlite"), ("missing.sqlite",)),
    ],
)
def test_a_mistake_is_one_line(arguments, words, tmp_path):
    refused(costmodel(*arguments, COSTMODEL_STORE=str(tmp_path / "store.sqlite")), *words)


def test_no_compiler_says_what_to_install(tmp_path):
    done = costmodel("tune", "matmul", CXX="no-such-compiler", COSTMODEL_STORE=str(tmp_path / "s.sqlite"))
    refused(done, "no-such-compiler", "install")


def test_new_collect_tune_and_the_store(tmp_path):
    """A kernel written after the model was trained, tuned by following the README alone."""
    store = {"COSTMODEL_STORE": str(tmp_path / "store.sqlite")}
    assert costmodel("new", "axpy.cpp", cwd=tmp_path).returncode == 0
    refused(costmodel("new", "axpy.cpp", cwd=tmp_path), "exists already")
    tuned = document(
        costmodel("tune", "axpy.cpp", "--problem", "n=300000", "--budget", "12", "--json", cwd=tmp_path, **store)
    )
    assert tuned["evaluated"] == 12
    assert tuned["best_us"] > 0
    assert tuned["space_size"] == 192
    assert set(tuned["best_config"]) == {"CHUNK", "UNROLL", "OPT", "VECTOR_BITS", "THREADS"}
    again = document(
        costmodel("tune", "axpy.cpp", "--problem", "n=300000", "--budget", "12", "--json", cwd=tmp_path, **store)
    )
    assert again["reused"] == 12
    listed = document(costmodel("store", "ls", "--json", **store))
    assert sum(row["variants"] for row in listed) == 12
    exported = document(costmodel("store", "export", tmp_path / "out", "--json", **store))
    assert exported["rows"] >= 12
    assert (tmp_path / "out" / "README.md").is_file()
    scored = document(costmodel("evaluate", "--data", tmp_path / "out", "--json"))
    assert scored["rows"][-1]["n"] == 12


def wait_for_rows(path, count, process):
    """Until the store holds `count` rows; the writer must still be at it."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert process.poll() is None, "it ended before it could be killed"
        if path.exists():
            with Store(path) as store:
                if sum(1 for _ in store.measurements()) >= count:
                    return
        time.sleep(0.05)
    raise AssertionError("nothing was stored")


def killed_in_mid_run(path, *arguments, cwd, rows=6):
    command = [sys.executable, "-c", "from costmodel.cli import main; main()", *arguments]
    environment = dict(os.environ, PYTHONPATH=str(ROOT), COSTMODEL_STORE=str(path))
    process = subprocess.Popen(command, cwd=cwd, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for_rows(path, rows, process)
    process.kill()
    process.wait()
    with Store(path) as store:
        return [(m.variant, m.collected_at, m.samples_us) for m in store.measurements()]


def test_a_search_killed_with_9_goes_on_and_measures_nothing_twice(tmp_path):
    path = tmp_path / "store.sqlite"
    assert costmodel("new", "axpy.cpp", cwd=tmp_path).returncode == 0
    arguments = ("tune", "axpy.cpp", "--problem", "n=300000", "--budget", "30", "--json")
    kept = killed_in_mid_run(path, *arguments, cwd=tmp_path)
    assert len({variant for variant, _, _ in kept}) == len(kept)
    resumed = document(costmodel(*arguments, cwd=tmp_path, COSTMODEL_STORE=str(path)))
    assert resumed["reused"] == len(kept)
    assert resumed["evaluated"] == 30 or resumed["stopped_by"] == "confidence"
    with Store(path) as store:
        now = [(m.variant, m.collected_at, m.samples_us) for m in store.measurements()]
    assert now[: len(kept)] == kept


def test_a_collection_killed_with_9_goes_on_and_two_may_run_at_once(tmp_path):
    path = tmp_path / "store.sqlite"
    assert costmodel("new", "axpy.cpp", cwd=tmp_path).returncode == 0
    arguments = ("collect", "axpy.cpp", "--configs", "30", "--passes", "1", "--json")
    kept = killed_in_mid_run(path, *arguments, cwd=tmp_path)
    environment = {"COSTMODEL_STORE": str(path)}
    document(costmodel(*arguments, cwd=tmp_path, **environment))
    with Store(path) as store:
        now = [(m.variant, m.collected_at, m.samples_us) for m in store.measurements()]
    assert now[: len(kept)] == kept
    assert len(now) == len({variant for variant, _, _ in now}) == 60


def test_others_records_can_be_evaluated_and_folded_into_the_model(tmp_path):
    """A Kernel Tuner cache of 96 configs: the commands take it as it is, and the updated model ranks it better."""
    values = {"block_size_x": [16, 32, 64, 128], "tile_size": [1, 2, 4, 8], "unroll": [0, 1, 2, 4, 8, 16]}
    entries = {}
    for x in values["block_size_x"]:
        for tile in values["tile_size"]:
            for unroll in values["unroll"]:
                ms = 1.0 + abs(x - 64) / 16 + abs(tile - 4) + unroll / 8
                key = f"{x},{tile},{unroll}"
                entries[key] = {"block_size_x": x, "tile_size": tile, "unroll": unroll, "time": ms, "times": [ms, ms]}
    cache = tmp_path / "blur__RTX_3090.json"
    cache.write_text(
        json.dumps(
            {"device_name": "NVIDIA GeForce RTX 3090", "kernel_name": "blur", "problem_size": [4096, 4096],
             "tune_params_keys": list(values), "tune_params": values, "objective": "time", "cache": entries}
        )
    )  # fmt: skip
    before = document(costmodel("evaluate", "--data", cache, "--by", "device", "--json"))["rows"]
    assert before[0]["group"] == "NVIDIA GeForce RTX 3090"
    assert before[0]["n"] == 96
    assert before[0]["mape"] is None  # nothing says what the scale is
    done = document(costmodel("update", "--data", cache, "--out", tmp_path / "mine", "--json"))
    assert (done["rows"], done["spaces"]) == (96, 1)
    after = document(costmodel("evaluate", "--data", cache, "--model", tmp_path / "mine", "--json"))["rows"][0]
    assert after["spearman"] > 0.95 > before[0]["spearman"]
    assert after["mape"] < 0.2
    refused(costmodel("update", "--data", tmp_path / "nowhere.json"), "nowhere.json")
