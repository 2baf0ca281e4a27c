"""Hostile input: every reader answers with a value or one UserError line, in bounded memory, and executes nothing."""

import gzip
import json
import os
import random
import sqlite3
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from costmodel import dataset, footer, reading, workloads
from costmodel.cli.shared import read_measurements
from costmodel.measure import channel, surroundings
from costmodel.measure.protocol import Outcome
from costmodel.records import Kernel, UserError
from costmodel.store import Store

ROOT = Path(__file__).resolve().parent.parent
fuzz = workloads.load_module(ROOT / "benchmarks" / "fuzz.py")
records = workloads.load_module(workloads.shipped("collectors") / "tuning_records.py")
TORCH = ("model-config", "model-weights", "model-tokenizer", "training")  # a model is built for each input


@pytest.mark.parametrize("name", fuzz.READERS)
def test_a_damaged_file_is_read_or_refused_in_one_line(name, tmp_path):
    reader, chance = fuzz.READERS[name], random.Random(name)
    seeds = reader.seeds(tmp_path)
    for seed in seeds:
        assert fuzz.outcome(reader, tmp_path, seed) == "read"
    for _ in range(8 if name in TORCH else 40):
        fuzz.outcome(reader, tmp_path, fuzz.mutated(chance.choice(seeds), chance))
    for _ in range(5):
        fuzz.outcome(reader, tmp_path, chance.randbytes(200))


def refused_within(code: str, tmp_path: Path, *, most_bytes: int = 2 << 30) -> str:
    """The UserError that a process of little memory ends with."""
    script = f"""
        import resource, sys
        resource.setrlimit(resource.RLIMIT_AS, ({most_bytes}, {most_bytes}))
        from pathlib import Path
        from costmodel import workloads
        from costmodel.records import UserError
        place = Path({str(tmp_path)!r})
        try:
            print("read", {code})
        except UserError as error:
            print("refused", error)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-800:]
    said = done.stdout.strip()
    assert said.startswith("refused "), said[:300]
    assert "\n" not in said
    return said


READ = (
    "sum(1 for _ in workloads.load_module(workloads.shipped('collectors') / 'tuning_records.py').read(place / 'bomb'))"
)


def test_gzip_that_never_ends_is_refused(tmp_path):
    with gzip.open(tmp_path / "bomb", "wb") as file:
        file.write(b'{"kernel_name": "k", "device_name": "A100", "tune_params_keys": ["x"], "cache": {')
        for _ in range(300):
            file.write(b" " * (1 << 20))
    assert "unpacks to over" in refused_within(READ, tmp_path)


@pytest.mark.parametrize(
    ("head", "unit"),
    [
        (b'{"tune_params_keys": ["x"], "cache": {"a": ', b"["),
        (b'{"tune_params_keys": ["x"], "cache": {"a": {"x": ', b'{"a":'),
        (b'{"tune_params_keys": ["x"], "cache": {"a": [', b"[],"),
        (b'{"tune_params_keys": ["x"], "cache": {"a": "', b"x"),
        (b'{"tune_params_keys": ["x"], "cache": {"a": {"x": 1, "time": ', b"9"),
    ],
)
def test_a_value_without_end_is_refused(tmp_path, head, unit):
    (tmp_path / "bomb").write_bytes(head + unit * (20_000_000 // len(unit)))
    refused_within(READ, tmp_path)


def test_a_table_of_one_line_is_refused(tmp_path):
    (tmp_path / "bomb").write_bytes(b"OPName,Latency,B,H\n" + b"a" * 20_000_000)
    refused_within(READ, tmp_path)


def written(folder: Path) -> Path:
    dataset.write_parquet(fuzz.measurements(), folder)
    return folder


def with_column(folder: Path, name: str, values: pa.Array, rows: int) -> Path:
    table = pq.read_table(written(folder) / "measurements.parquet")
    table = table.take(pa.array(np.zeros(rows, np.int64)))
    pq.write_table(table.set_column(table.schema.get_field_index(name), name, values), folder / "measurements.parquet")
    return folder


def test_parquet_that_stands_for_more_than_memory_is_refused(tmp_path):
    long = pa.DictionaryArray.from_arrays(pa.array(np.zeros(4000, np.int32)), pa.array(["x" * (1 << 20)]))
    with_column(tmp_path, "error", long, 4000)
    assert (tmp_path / "measurements.parquet").stat().st_size < 1 << 20
    said = refused_within("len(__import__('costmodel.dataset').dataset.read_parquet(place))", tmp_path)
    assert "unpack to" in said


def test_a_parquet_row_of_endless_samples_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(dataset.bounded, "MOST_VALUES", 1000)
    many = pa.ListArray.from_arrays(pa.array([0, 1001]), pa.array(np.ones(1001, np.int64)))
    with_column(tmp_path, "samples_ns", many, 1)
    with pytest.raises(UserError, match="values of a column"):
        dataset.read_parquet(tmp_path)


def test_a_footer_that_ends_pyarrow_is_refused(tmp_path):
    """Its size statistics contradict its types: to look at the column's metadata aborts the process (pyarrow 26)."""
    forged = (ROOT / "tests" / "golden" / "forged_footer.parquet").read_bytes()
    (written(tmp_path) / "kernels.parquet").write_bytes(forged)
    refused_within("len(__import__('costmodel.dataset').dataset.read_parquet(place))", tmp_path)


def test_sizes_in_a_footer_are_pyarrows(tmp_path):
    path = written(tmp_path) / "measurements.parquet"
    stated = pq.ParquetFile(path).metadata
    group = stated.row_group(0)
    values = max(group.column(i).num_values for i in range(group.num_columns))
    assert footer.sizes(path) == (stated.num_rows, values, group.total_byte_size)


def test_columns_within_columns_are_refused(tmp_path):
    nested = pa.array([[[[1]]]])
    with_column(tmp_path, "samples_ns", nested, 1)
    with pytest.raises(UserError, match="nest deeper"):
        dataset.read_parquet(tmp_path)


@pytest.mark.parametrize("code", ["CREATE TRIGGER t AFTER INSERT ON measurements BEGIN SELECT 1; END",
                                  "CREATE VIEW v AS SELECT 1"])  # fmt: skip
def test_a_store_with_code_in_its_schema_is_refused(tmp_path, code):
    with Store(tmp_path / "s") as store:
        store.add(fuzz.measurements())
    database = sqlite3.connect(tmp_path / "s")
    database.execute(code)
    database.commit()
    database.close()
    with pytest.raises(UserError, match="expected none"):
        Store(tmp_path / "s")


def test_a_store_with_a_text_too_long_is_refused(tmp_path):
    with Store(tmp_path / "s") as store:
        store.add(fuzz.measurements())
    database = sqlite3.connect(tmp_path / "s")
    database.execute("UPDATE measurements SET error = hex(zeroblob(20000000))")
    database.commit()
    database.close()
    with pytest.raises(UserError, match="longer than"), Store(tmp_path / "s") as store:
        list(store.measurements())


@pytest.mark.parametrize("depth", [2000, 1_000_000])
def test_nesting_has_a_limit_everywhere(depth):
    for text in ("[" * depth, '{"a":' * depth):
        with pytest.raises(ValueError, match=r"deep|Expecting"):
            reading.decoded(text)
    with pytest.raises(ValueError, match=r"characters|expression"):
        reading.literal("(" * depth)
    with pytest.raises(UserError, match="cannot parse"):
        workloads.triton_source("x = " + "(" * depth)
    body = f'{{"status":"ok","samples_us":{"[" * depth}'.encode()
    with pytest.raises(channel.Closed):
        Outcome.decode(channel.unpack(len(body).to_bytes(4, "little") + body))


@pytest.mark.parametrize("language", ["cpp", "cuda", "triton"])
def test_a_source_that_nests_without_end_is_still_text(language):
    from costmodel.serialize import canonical_source

    for text in ("(" * 100_000, "{" * 100_000, "x\0y", "a[" * 50_000 + "]" * 50_000, '"' * 99_999, "/*" * 50_000):
        assert isinstance(canonical_source(Kernel("k", language, text)), str)


def test_only_regular_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero"), tmp_path):
        with pytest.raises(UserError, match=r"a pipe, device or socket|a folder"):
            reading.text(path, most_bytes=10, expected="text")
    with pytest.raises(UserError, match="a pipe, device or socket"):
        read_measurements([tmp_path / "pipe"])
    (tmp_path / "large").write_bytes(bytes(11))
    with pytest.raises(UserError, match="of 11 bytes"):
        reading.text(tmp_path / "large", most_bytes=10, expected="text")


# ---- model folders ----


def changed_model(tmp_path, **changes):
    folder = fuzz.model_folder(tmp_path)
    document = json.loads((folder / "config.json").read_text())
    for key, value in changes.items():
        document.pop(key, None) if value is None else document.update({key: value})
    (folder / "config.json").write_text(json.dumps(document))
    return folder


@pytest.mark.parametrize(
    "changes",
    [
        {"num_hidden_layers": 10**9},
        {"num_hidden_layers": 900},
        {"vocab_size": 10**12},
        {"hidden_size": 10**6},
        {"intermediate_size": 1 << 24},
        {"model_type": "no such"},
        {"model_type": "vit"},
        {"model_type": ["llama"]},
        {"costmodel": None},
        {"costmodel": {"format": 1, "members": 10**9, "head": {}, "details": {}}},
        {"costmodel": {"format": 1, "members": 2, "head": {"kind": "grid", "bins": 10**12}, "details": {}}},
        {"hidden_act": "exec"},
    ],
    ids=str,
)
def test_a_config_that_does_not_fit_its_weights_is_refused_before_memory_is_taken(tmp_path, changes):
    from costmodel.model import checkpoint

    with pytest.raises(UserError):
        checkpoint.load(changed_model(tmp_path, **changes))


def test_no_code_that_a_config_names_is_run(tmp_path, monkeypatch):
    """Not what `architectures` calls, no file of the folder, no kernel to download and no package to import."""
    import transformers

    from costmodel.model import checkpoint, decoder

    def called(*arguments, **keywords):
        raise AssertionError("called")

    monkeypatch.setattr(transformers, "pipeline", called)
    folder = changed_model(
        tmp_path,
        architectures=["pipeline"],
        auto_map={"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"},
        attn_implementation="evil/kernel",
        _attn_implementation="evil/kernel",
        quantization_config={"quant_method": "gptq", "bits": 4},
    )
    (folder / "evil.py").write_text("raise SystemExit('run')")
    members, _, _ = checkpoint.load(folder)
    assert [type(member.backbone).__name__ for member in members] == ["LlamaForCausalLM"] * 2
    assert type(decoder.load(folder)).__name__ == "LlamaForCausalLM"


def test_a_pickle_is_no_model(tmp_path):
    from costmodel.model import checkpoint

    folder = fuzz.model_folder(tmp_path)
    weights = folder / "model.safetensors"
    weights.rename(folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="safetensors"):
        checkpoint.load(folder)
    weights.write_bytes(b"\x80\x04cos\nsystem\n(S'touch hit'\ntR.")
    with pytest.raises(UserError, match="safetensors"):
        checkpoint.load(folder)


def test_an_index_of_shards_stays_in_its_folder(tmp_path):
    from costmodel.model import decoder

    folder = fuzz.model_folder(tmp_path)
    index = {"weight_map": {"a": "../other.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="same folder"):
        decoder.load(folder)


def test_a_tokenizer_with_a_pattern_of_its_own_is_refused(tmp_path):
    from costmodel.tokens import TextTokenizer

    path = fuzz.model_folder(tmp_path) / "tokenizer.json"
    document = json.loads(path.read_text())
    document["pre_tokenizer"]["pretokenizers"][0]["pattern"] = {"Regex": "(a+)+$"}
    path.write_text(json.dumps(document))
    with pytest.raises(UserError, match="pattern"):
        TextTokenizer.load(path)


# ---- trust ----

KERNEL = """
from pathlib import Path
Path(__file__).with_name("hit").touch()
from costmodel.workloads import load
WORKLOAD = load("matmul")
"""


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A project to work in, and a kernel outside it that leaves a mark when it is executed."""
    monkeypatch.delenv(workloads.TRUST)
    monkeypatch.setattr(Path, "home", staticmethod(lambda: tmp_path / "home"))
    for name in ("home", "project/sub", "other"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "project" / ".git").mkdir()
    monkeypatch.chdir(tmp_path / "project" / "sub")
    (tmp_path / "other" / "evil.py").write_text(KERNEL)
    return tmp_path / "other" / "evil.py"


def test_a_kernel_from_outside_the_project_is_executed_only_with_trust(elsewhere, monkeypatch):
    with pytest.raises(workloads.Untrusted, match="add --trust"):
        workloads.load(elsewhere)
    link = Path("link.py")
    link.symlink_to(elsewhere)
    with pytest.raises(workloads.Untrusted):
        workloads.load(link)
    assert not elsewhere.with_name("hit").exists()
    assert workloads.load(elsewhere, trust=True).kernel.name == "matmul"
    assert elsewhere.with_name("hit").exists()
    monkeypatch.setenv(workloads.TRUST, "1")
    assert workloads.load(elsewhere).kernel.name == "matmul"


def test_a_kernel_of_the_project_needs_no_word(elsewhere, monkeypatch):
    own = Path("..", "own.py").resolve()
    own.write_text(KERNEL)
    assert workloads.is_own(own)
    assert workloads.load(own).kernel.name == "matmul"
    own.chmod(0o666)
    assert not workloads.is_own(own)
    assert workloads.is_own(workloads.shipped("kernels") / "cpp" / "matmul.py")
    monkeypatch.chdir(elsewhere.parent.parent)  # no git here: this folder is the project
    assert workloads.is_own(elsewhere)
    monkeypatch.setattr(Path, "home", staticmethod(lambda: elsewhere.parent.parent))  # no project: a home
    assert not workloads.is_own(elsewhere)


@pytest.mark.parametrize(
    "name", ["../evil", "cpp/../../evil", "*/evil", "/evil", "cpp/", "", "loop_nest:" + "9" * 5000]
)
def test_no_name_leads_out_of_the_shipped_kernels(elsewhere, name):
    with pytest.raises(UserError):
        workloads.load(name)
    assert not elsewhere.with_name("hit").exists()


@pytest.mark.parametrize("command", [["predict"], ["tune"]], ids=lambda words: words[0])
def test_commands_refuse_in_one_line_with_exit_code_2(elsewhere, command):
    done = subprocess.run(
        [sys.executable, "-c", "from costmodel.cli import main; main()", *command, str(elsewhere)],
        capture_output=True, text=True, stdin=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(ROOT), "HOME": str(elsewhere.parent.parent / "home")},
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"costmodel: got {elsewhere}")
    assert done.stderr.count("\n") == 1
    assert not elsewhere.with_name("hit").exists()


def test_what_a_message_quotes_cannot_steer_the_terminal():
    done = subprocess.run(
        [sys.executable, "-c", "from costmodel.cli import main; main()", "predict", "\x1b[2J\nmatmul"],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "\x1b" not in done.stderr


def test_a_record_that_names_its_kernel_like_a_file_runs_nothing(elsewhere, monkeypatch):
    from dataclasses import replace

    from costmodel.cli.shared import workloads_of

    monkeypatch.setenv(workloads.TRUST, "1")
    (row, *_) = fuzz.measurements()
    for name in (str(elsewhere), str(elsewhere.with_suffix("")), "../evil"):
        kernel = replace(row.variant.kernel, name=name)
        assert workloads_of([replace(row, variant=replace(row.variant, kernel=kernel))]) == {}
    assert not elsewhere.with_name("hit").exists()


def test_exported_files_stay_in_their_folder(tmp_path):
    from dataclasses import replace

    from costmodel.published.export import write_spaces

    (row, *_) = fuzz.measurements()
    kernel = replace(row.variant.kernel, name="../../evil", source=None)
    (name,) = write_spaces(
        [replace(row, variant=replace(row.variant, kernel=kernel))], tmp_path / "out", form="kernel-tuner"
    )
    assert (tmp_path / "out" / name).is_file()
    assert not list(tmp_path.glob("*.json"))


# ---- what the isolated worker gives up ----


def sealed(code: str, tmp_path: Path) -> dict[str, object]:
    script = f"""
        import json, os, socket
        from costmodel.measure import sealing
        held = sealing.seal(writable=[{str(tmp_path / "scratch")!r}])
        def fails(action):
            try:
                action()
            except OSError:
                return True
            return False
        told = {code}
        print(json.dumps({{"held": held, **told}}))
    """
    (tmp_path / "scratch").mkdir(exist_ok=True)
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="Linux's")
def test_a_sealed_process_has_no_network_and_writes_to_its_scratch_folder_alone(tmp_path):
    told = sealed(
        "{'network': fails(lambda: socket.create_connection(('127.0.0.1', 9), 1)),"
        f"'interfaces': sorted(name for _, name in socket.if_nameindex()),"
        f"'outside': fails(lambda: open({str(tmp_path / 'outside')!r}, 'w')),"
        f"'inside': fails(lambda: open({str(tmp_path / 'scratch' / 'inside')!r}, 'w'))}}",
        tmp_path,
    )
    if told["held"]["network"] == "cut":
        assert told["network"]
        assert told["interfaces"] == ["lo"]
    if told["held"]["writing"] == "scratch and cache only":
        assert told["outside"]
        assert not (tmp_path / "outside").exists()
    assert not told["inside"]


def test_a_helper_sees_no_secrets_and_leaves_no_scratch(monkeypatch, tmp_path):
    from costmodel.measure.helpers import Helper

    for name in ("AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "TRITON_API_KEY", "DATABASE_URL", "COSTMODEL_STORE"):
        monkeypatch.setenv(name, "secret")
    monkeypatch.setenv("OMP_PLACES", "cores")
    helper = Helper("costmodel.measure.launcher", {"COSTMODEL_WRITABLE": str(tmp_path)})
    answer = helper.ask(
        {"command": ["env"], "text": "", "timeout_s": 30, "cores": sorted(os.sched_getaffinity(0))}, timeout_s=60
    )
    seen = dict(line.split("=", 1) for line in answer["said"].splitlines() if "=" in line)
    assert "secret" not in seen.values()
    assert seen["OMP_PLACES"] == "cores"
    assert seen["HOME"] == seen["TMPDIR"] == str(helper.scratch.path)
    assert helper.scratch.path.is_dir()
    helper.close()
    assert not helper.scratch.path.exists()


def test_scratch_that_a_killed_supervisor_left_goes_with_the_next(monkeypatch, tmp_path):
    monkeypatch.setattr(surroundings.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(surroundings.tempfile, "tempdir", str(tmp_path))
    kept, left = surroundings.Scratch(), tmp_path / "costmodel-scratch-left"
    left.mkdir()
    (left / "file").touch()
    os.utime(left, (0, 0))
    os.utime(kept.path, (0, 0))
    other = surroundings.Scratch()
    assert not left.exists()
    assert kept.path.is_dir()
    kept.remove()
    other.remove()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "message",
    [{"status": "won"}, {"status": "ok", "samples_us": [10**400]}, {"status": "ok", "samples_us": [float("nan")]},
     {"status": "timeout", "samples_us": [], "error": "", "counters": [["a"]]}],
    ids=str,
)  # fmt: skip
def test_what_a_kernel_writes_into_the_workers_pipe_is_checked(message):
    with pytest.raises((KeyError, OverflowError, TypeError, ValueError)):
        Outcome.decode(channel.unpack(channel.pack(message)))
