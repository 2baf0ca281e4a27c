"""Records of other tools: what is read, what is refused and in which words, and that writing loses nothing."""

import csv
import gzip
import json
import math
import subprocess
import sys
import warnings
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from costmodel import devices, workloads
from costmodel.cli import shared
from costmodel.published.export import write_spaces
from costmodel.records import Config, Kernel, Measurement, Problem, TensorSpec, Timing, UserError, Variant
from costmodel.store import Store

records = workloads.load_module(workloads.shipped("collectors") / "tuning_records.py")
PUBLIC = Path(__file__).resolve().parent.parent.parent / "shared" / "data"
public = pytest.mark.skipif(not PUBLIC.is_dir(), reason="the public records are not at hand")

A100 = "NVIDIA A100-PCIE-40GB"
TUNED = {"MODE": ["row", "col"], "TILE": [32, 8, 16]}
ENTRIES = [
    {"MODE": "row", "TILE": 8, "time": 0.07, "times": [0.06, 0.08], "compile_time": 900.5, "benchmark_time": 3,
     "GFLOP/s": 12.5, "timestamp": "2023-01-24 04:46:16.858251+00:00"},
    {"MODE": "col", "TILE": 8, "time": "CompilationFailedConfig", "compile_time": 12.0},
    {"MODE": "col", "TILE": 16, "time": "RuntimeFailedConfig"},
    {"MODE": "row", "TILE": 32, "time": "InvalidConfig"},
]  # fmt: skip


def cache(entries=ENTRIES, **head):
    body = {f"{e['MODE']},{e['TILE']}": e for e in entries}
    return {"device_name": A100, "kernel_name": "gemm_kernel", "problem_size": [4096, 512],
            "tune_params_keys": list(TUNED), "tune_params": TUNED, **head, "cache": body}  # fmt: skip


def t4(**head):
    words = {"CompilationFailedConfig": "compile", "RuntimeFailedConfig": "runtime", "InvalidConfig": "constraints"}
    results = [
        {
            "configuration": {"TILE": e["TILE"], "MODE": e["MODE"]},
            "times": {"compilation": e.get("compile_time"), "runtimes": e.get("times", [])},
            "invalidity": words.get(e["time"], "correct"), "correctness": 1, "objectives": ["time"],
            "measurements": [{"name": "time", "value": e["time"], "unit": ""}],
            "timestamp": e.get("timestamp"),
        }
        for e in ENTRIES
    ]  # fmt: skip
    return {"results": results, "schema_version": "1.0.0", "metadata": {"timeunit": "miliseconds"}} | head


T1 = {
    "ConfigurationSpace": {"TuningParameters": [{"Name": n, "Values": str(v)} for n, v in TUNED.items()]},
    "KernelSpecification": {"Language": "CUDA", "ProblemSize": [4096, 512]},
}


def put(path: Path, document) -> Path:
    text = document if isinstance(document, str) else json.dumps(document)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def read(path, **options):
    return list(records.read(path, **options))


@pytest.fixture
def kt(tmp_path):
    return put(tmp_path / "gemm__A100.json.gz", cache())


def test_a_cache_of_kernel_tuner(kt):
    rows = read(kt)
    assert [row.status for row in rows] == ["ok", "compile_error", "launch_error", "compile_error"]
    assert [row.error for row in rows[1:]] == ["CompilationFailedConfig", "RuntimeFailedConfig", "InvalidConfig"]
    first = rows[0]
    assert first.samples_us == (60.0, 80.0)
    assert dict(first.counters) == {
        "published_us": 70.0, "compile_us": 900500.0, "benchmark_us": 3000.0, "GFLOP/s": 12.5,
    }  # fmt: skip
    assert first.collected_at == "2023-01-24T04:46:16.858251+00:00"
    kernel = first.variant.kernel
    assert (kernel.name, kernel.language, kernel.source, kernel.origin) == ("gemm", "cuda", None, "kernel_tuner")
    assert kernel.schema == (("MODE", ("col", "row")), ("TILE", (8, 16, 32)))
    assert first.variant.config == Config.of(MODE="row", TILE=8)
    assert first.variant.problem == Problem("gemm", (), (("size_0", 4096), ("size_1", 512)), 0, 0)
    assert first.device == devices.find(A100)
    assert first.timing == Timing("warm", 0.0, 2, 0.0)


def test_t4_with_its_t1_gives_the_same_variants(kt, tmp_path):
    put(tmp_path / "gemm.json", T1)
    result = put(tmp_path / "t4__A100.json", t4())
    beside = read(put(tmp_path / "gemm__A100.json", t4()))
    given_space = read(result, space=tmp_path / "gemm.json", device="A100")
    for row, other in zip(beside, read(kt), strict=True):
        assert (row.variant, row.device, row.timing) == (other.variant, other.device, other.timing)
        assert (row.status, row.samples_us, row.error) == (other.status, other.samples_us, other.error)
        assert row.toolchain == (("t4", "1.0.0"),) != other.toolchain
    assert [r.variant.config for r in given_space] == [r.variant.config for r in beside]


def test_t4_alone_knows_only_what_was_observed(tmp_path):
    (row, *_) = read(put(tmp_path / "gemm__A100.json", t4()))
    assert row.variant.kernel.schema == (("TILE", (8, 16, 32)), ("MODE", ("col", "row")))
    assert row.variant.problem.params == ()


def test_a_triton_cache(tmp_path):
    def entry(block, times, **more):
        config = {"kwargs": {"BLOCK": block}, "num_warps": 4, "num_stages": 3, "num_ctas": 1, "maxnreg": None}
        return [config | {"pre_hook": None, "ir_override": None} | more, times]

    timings = [entry(64, [0.01, 0.009, 0.02]), entry(128, [math.inf] * 3), entry(32, [0.03] * 3, maxnreg=64)]
    document = {"key": [1024, "torch.float16"], "configs_timings": timings}
    path = put(tmp_path / "mm.autotune.json", document)
    ok, failed, limited = read(path, device="H100 80GB HBM3")
    assert (ok.samples_us, dict(ok.counters)) == ((10.0,), {"p20_us": 9.0, "p80_us": 20.0})
    assert ok.variant.config.as_dict() == {"BLOCK": 64, "num_warps": 4, "num_stages": 3, "num_ctas": 1, "maxnreg": 0}
    assert (failed.status, limited.variant.config["maxnreg"]) == ("compile_error", 64)
    assert ok.variant.problem.params == (("key_0", 1024), ("key_1", "torch.float16"))
    assert (ok.variant.kernel.name, ok.variant.kernel.language) == ("mm", "triton")
    with pytest.raises(UserError, match=r"states no device.*--device"):
        read(path)


HELION = """timestamp_s,config_index,generation,status,perf_ms,compile_time_s,config
0.10,1,0,started,,,"Config(block_sizes=[32, 16], num_warps=4, indexing='pointer')"
0.50,1,0,ok,1.234000,0.40,"Config(block_sizes=[32, 16], num_warps=4, indexing='pointer')"
0.60,2,0,timeout,,60.00,"helion.Config(block_sizes=[64, 16], num_warps=8, indexing='pointer')"
0.70,3,0,error,,,"Config(block_sizes=[64, 32], num_warps=8, indexing='pointer')"
"""


def test_a_log_of_helion(tmp_path):
    path = put(tmp_path / "softmax__H100.csv", HELION)
    rows = read(path, device="H100 80GB HBM3")
    assert [row.status for row in rows] == ["ok", "timeout", "launch_error"]
    assert rows[0].samples_us == (1234.0,)
    assert dict(rows[0].counters) == {"compile_us": 400000.0}
    assert rows[0].variant.config.as_dict() == {
        "block_sizes_0": 32, "block_sizes_1": 16, "num_warps": 4, "indexing": "pointer",
    }  # fmt: skip
    assert (rows[0].variant.kernel.name, rows[0].variant.kernel.origin) == ("softmax", "helion")


def test_helions_metadata_names_kernel_shapes_and_device(tmp_path):
    head = "run_id,timestamp_s,config_id,generation,status,perf_ms,compile_time_s,config\n"
    path = put(tmp_path / "run.csv", head + "r1,0.5,c1,0,ok,0.5,0.4,Config(block_sizes=[32])\n")
    meta = {"run_id": "r1", "kernel_name": "add", "input_shapes": "[(64, 8)]", "dtypes": "['torch.bfloat16']",
            "hardware_info": {"device_name": "NVIDIA L4", "versions": {"helion": "1.0"}}}  # fmt: skip
    put(tmp_path / "run.meta.jsonl", json.dumps(meta) + "\n")
    (row,) = read(path)
    assert row.variant.problem == Problem("add", (TensorSpec((64, 8), "bf16"),), (("arg0_0", 64), ("arg0_1", 8)), 0, 0)
    assert (row.device.name, row.toolchain) == ("NVIDIA L4", (("helion", "1.0"),))


MATMULS = "OPName,Latency,Device,Torch Version,CUDNN Version,Kernel Name,CUDA Version,B,M,N,K\n"


@pytest.mark.parametrize(
    ("line", "shapes", "flops", "moved"),
    [
        ("bmm,0.5,Tesla T4,p2.1.0,8902,k,cu121,2,3,5,7", ((2, 3, 7), (2, 7, 5)), 420, 4 * (42 + 70 + 30)),
        ("linear,0.5,Tesla T4,p2.1.0,8902,k,cu121,1,3,5,7", ((1, 3, 7), (7, 5)), 210, 4 * (21 + 35 + 15)),
    ],
)
def test_a_table_of_products(tmp_path, line, shapes, flops, moved):
    (row,) = read(put(tmp_path / "t.csv", MATMULS + line + "\n"))
    problem = row.variant.problem
    assert tuple(spec.shape for spec in problem.inputs) == shapes
    assert (problem.flops, problem.bytes, row.samples_us) == (flops, moved, (500.0,))
    assert row.toolchain == (("torch", "2.1.0"), ("cudnn", "8902"), ("cuda", "121"))
    assert (row.variant.kernel.language, row.variant.kernel.origin) == ("operator", "torch")
    assert "k" not in dict(row.counters)


@pytest.mark.parametrize(("op", "operands"), [("add", 3), ("addu", 2), ("gelu", 2), ("softmax", 2), ("ln", 2)])
def test_a_table_of_elementwise_operators(tmp_path, op, operands):
    path = put(tmp_path / "t.csv.gz", f"OPName,Latency,Device,B,H\n{op},0.5,Tesla P4,10,20\n")
    (row,) = read(path)
    assert row.variant.problem.bytes == operands * 200 * 4
    assert row.variant.problem.params == (("B", 10), ("H", 20))
    assert row.variant.problem.flops >= 200


# ------------------------------------------------------------------------------------------------- damage and doubt


@pytest.mark.parametrize("end", [5, 60, 0])
def test_a_killed_runs_cache_keeps_its_whole_entries(tmp_path, end):
    text = json.dumps(cache())[:-2]  # the closing brackets are written by nobody
    text = text[: text.rindex('"row,32"') + end] if end else text + ",\n"
    with pytest.warns(records.RecordWarning, match="stops inside an entry") as caught:
        rows = read(put(tmp_path / "gemm__A100.json", text))
    assert len(caught) == 1
    assert len(rows) == (3 if end else 4)
    assert rows[0].variant.kernel.schema == (("MODE", ("col", "row")), ("TILE", (8, 16, 32)))


@pytest.mark.parametrize("time", [math.nan, -1.0, 0, 0.0, 1e-9, 1e20, True, None, "SomethingElse"])
def test_an_entry_without_a_time_is_left_out_and_counted(tmp_path, time):
    path = put(tmp_path / "gemm__A100.json", cache([*ENTRIES[:2], {"MODE": "col", "TILE": 32, "time": time}]))
    with pytest.warns(records.RecordWarning, match="1 entries whose"):
        assert len(read(path)) == 2
    path = put(tmp_path / "gemm__A100.json", cache([{"MODE": "col", "TILE": 32, "time": time}]))
    with pytest.raises(UserError, match="no usable entry"):
        read(path)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.json", b'{"hello": 1}', "none of the records"),
        ("a.json", b"[1, 2]", "none of the records"),
        ("a.csv", b"x,y\n1,2\n", "none of the records"),
        ("a.json", b"", "none of the records"),
        ("a.json", b"\x80\x81\xff\xfe", "not text"),
        ("a.json.gz", b'{"cache": {}}', "not gzip"),
        ("a.json.gz", gzip.compress(json.dumps(cache()).encode())[:120], "gzip ends early"),
        ("a.json", b'{"cache": {"x": {}}}', "without tune_params_keys"),
        ("a.json", json.dumps(cache([])).encode(), "no usable entry"),
        ("a.json", json.dumps(cache()).replace('"time": 0.07', '"time" 0.07').encode(), "damaged"),
        ("a__A100.json", json.dumps(t4(metadata={"timeunit": "fortnights"})).encode(), "fortnights"),
    ],
)
def test_what_is_no_record_is_refused_in_one_line(tmp_path, name, content, words):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=words) as caught:
        read(path)
    assert "\n" not in str(caught.value)


def test_a_device_without_a_sheet_is_kept_bare_with_one_warning(tmp_path):
    path = put(tmp_path / "gemm.json", cache(device_name="Frobnicator RTX 9999"))
    with pytest.warns(records.RecordWarning, match="no sheet.*Frobnicator") as caught:
        rows = read(path)
    assert len(caught) == 1
    assert (rows[0].device.name, rows[0].device.peak_gb_per_s) == ("Frobnicator RTX 9999", 0)


def test_the_device_is_given_stated_or_in_the_files_name(tmp_path):
    path = put(tmp_path / "gemm__MI250X.json", cache(device_name=""))
    assert read(path)[0].device.name == "AMD Instinct MI250X"
    assert read(path, device="A4000")[0].device.name == "NVIDIA RTX A4000"
    assert read(path)[0].variant == read(path, device="A4000")[0].variant


def measured(latency_us, *, device="NVIDIA L4", tile=1, spread=0.0):
    kernel = Kernel("k", "cuda", None, (("TILE", (1, 2, 3)),), "kernel_tuner")
    variant = Variant(kernel, Problem("k", (), (("size_0", 8),), 0, 0), Config.of(TILE=tile))
    samples = (latency_us * (1 - spread), latency_us, latency_us * (1 + spread))
    return Measurement(variant, devices.find(device), Timing("warm", 0.0, 3, 0.0), (("t4", "1.0.0"),), "ok", samples)


def test_doubts():
    steady = [measured(10.0 * t, device=d, tile=t) for t in (1, 2, 3) for d in ("NVIDIA L4", "Tesla T4", "Tesla P4")]
    assert records.doubts(steady) == []
    (unsteady,) = records.doubts([measured(10.0, spread=0.5)])
    assert "k on NVIDIA L4" in unsteady and "vary by 50%" in unsteady  # noqa: PT018
    (scale,) = records.doubts([*steady, *(measured(0.01 * t, device="A4000", tile=t) for t in (1, 2, 3))])
    assert "NVIDIA RTX A4000: 1e+03 times faster" in scale


# ----------------------------------------------------------------------------------------------------------- writing

US = st.floats(1.0, 1e8)
FAILURES = [("compile_error", "CompilationFailedConfig"), ("launch_error", "RuntimeFailedConfig"),
            ("compile_error", "InvalidConfig")]  # fmt: skip
COSTS = ("compile_us", "benchmark_us", "verification_us", "framework_us", "strategy_us")


@st.composite
def spaces(draw, tool):
    """Measurements such as a reader makes of one space."""
    values = draw(
        st.lists(st.one_of(st.integers(-9, 999), st.text('ab_,"é', min_size=1)), min_size=1, max_size=5, unique=True)
    )
    values.sort(key=lambda v: (isinstance(v, str), 0 if isinstance(v, str) else v, str(v)))
    kernel = Kernel("my__kernel", "cuda", None, (("P", tuple(values)), ("Q", (0.5, 2))), "kernel_tuner")
    problem = Problem("my__kernel", (), (("size_0", draw(st.integers(1, 9999))),), 0, 0)
    repeats, rows = draw(st.integers(1, 4)), []
    for value in values:
        counters = {name: draw(st.floats(0, 1e7)) for name in COSTS if draw(st.booleans())}
        status, error = draw(st.sampled_from([("ok", ""), *FAILURES]))
        status, error = ("ok", "") if value == values[0] else (status, error)
        samples = tuple(draw(st.lists(US, min_size=repeats, max_size=repeats))) if status == "ok" else ()
        counters = ({"published_us": draw(US)} if samples else {}) | counters | {"GB/s": draw(st.floats(0, 1e4))}
        rows.append(Measurement(
            Variant(kernel, problem, Config.of(P=value, Q=draw(st.sampled_from([0.5, 2])))), devices.find("A4000"),
            Timing("warm", 0.0, repeats, 0.0), ((tool, "1.0.0" if tool == "t4" else "cache 1.1.0"),), status, samples,
            error, tuple(counters.items()), draw(st.sampled_from(["", "2023-12-22T13:17:23.719843+00:00"])),
        ))  # fmt: skip
    return rows


@pytest.mark.parametrize(
    ("tool", "write"), [("t4", records.write_t4), ("kernel_tuner", records.write_kernel_tuner_cache)]
)
@given(data=st.data())
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_written_reads_back_to_the_last_bit(tmp_path, tool, write, data):
    rows = data.draw(spaces(tool))
    path = tmp_path / "my__kernel__somewhere.json.gz"
    assert write(rows, path) == len(rows)
    assert read(path) == rows


def test_only_one_space_a_file_and_nothing_half_written(tmp_path):
    path = tmp_path / "x.json"
    for rows, words in (
        ([measured(1.0), measured(1.0, device="Tesla T4")], "one search space"),
        ([], "no measurement"),
    ):
        with pytest.raises(UserError, match=words):
            records.write_t4(iter(rows), path)
    assert list(tmp_path.iterdir()) == []
    assert records.write_t4([measured(1.0)], path) == 1


def test_a_store_is_written_space_by_space(tmp_path):
    rows = [measured(float(t), device=d, tile=t) for d in ("NVIDIA L4", "Tesla T4") for t in (1, 2, 3)]
    written = write_spaces(rows, tmp_path / "out", form="kernel-tuner")
    assert written == {"k__NVIDIA_L4.json": 3, "k__Tesla_T4.json": 3}
    again = read(tmp_path / "out" / "k__Tesla_T4.json")
    assert [row.variant for row in again] == [row.variant for row in rows[3:]]


# ------------------------------------------------------------------------------------------------------ command line


def costmodel(*arguments):
    return subprocess.run(
        [sys.executable, "-c", "from costmodel.cli import main; main()", *map(str, arguments)],
        cwd=Path(__file__).resolve().parent.parent, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


def test_import_and_export_as_commands(kt, tmp_path):
    store = ("--store", tmp_path / "s.sqlite", "--json")
    cut = put(tmp_path / "gemm__A4000.json", json.dumps(cache(ENTRIES[:2], device_name="NVIDIA RTX A4000"))[:-2])
    done = costmodel("import", kt, cut, *store)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert [entry["new"] for entry in document["files"]] == [4, 2]
    assert document["files"][0]["statuses"] == {"ok": 1, "compile_error": 2, "launch_error": 1}
    assert document["doubts"] == []
    assert len(document["warnings"]) == 1
    off = [entry | {"time": 70.0, "times": [60.0, 80.0]} for entry in ENTRIES[:1]]
    slow = put(tmp_path / "gemm__T4.json", cache(off, device_name="Tesla T4"))
    done = costmodel("import", slow, *store)
    assert "gemm on Tesla T4: 1e+03 times slower" in json.loads(done.stdout)["doubts"][0]
    done = costmodel("store", "export", tmp_path / "out", "--format", "kernel-tuner", *store)
    assert json.loads(done.stdout)["files"]["gemm__NVIDIA_A100-PCIE-40GB.json"] == 4
    assert read(tmp_path / "out" / "gemm__NVIDIA_A100-PCIE-40GB.json") == read(kt)


def test_a_mistake_is_one_line_of_the_command(tmp_path):
    done = costmodel("import", put(tmp_path / "a.json", "{}"), "--store", tmp_path / "s.sqlite")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "none of the records" in done.stderr


def test_commands_that_take_data_take_records(kt):
    (first, *_) = shared.read_measurements([kt])
    assert first == read(kt)[0]


# ------------------------------------------------------------------------------------------------------- real records


@public
def test_a_real_pair_agrees_and_survives_writing(tmp_path):
    name = "convolution_milo__A100"
    cached = PUBLIC / "autotuning" / "kernel_tuner" / f"{name}.json.gz"
    rows = read(cached)
    results = read(PUBLIC / "autotuning" / "t4" / f"{name}.json.gz")
    assert len(rows) == len(results) == 4362
    for row, other in zip(rows, results, strict=True):
        assert (row.variant, row.device, row.timing, row.status, row.samples_us, row.error, row.collected_at) == (
            other.variant, other.device, other.timing, other.status, other.samples_us, other.error, other.collected_at
        )  # fmt: skip
        without = {key: value for key, value in row.counters if key not in ("benchmark_us", "GFLOP/s")}
        assert without == dict(other.counters)
    records.write_kernel_tuner_cache(rows, tmp_path / cached.name)
    with gzip.open(cached) as before, gzip.open(tmp_path / cached.name) as after:
        assert json.load(before)["cache"] == json.load(after)["cache"]


@public
def test_one_kernel_is_the_same_on_every_device():
    kernels = {
        next(records.read(path)).variant.kernel
        for path in (PUBLIC / "autotuning").glob("kernel_tuner/convolution_milo__*.json.gz")
    }
    assert len(kernels) == 1


@public
def test_tables_enter_a_store_once(tmp_path):
    path = PUBLIC / "neusight" / "train" / "softmax.csv.gz"
    with Store(tmp_path / "s.sqlite") as store:
        assert store.add(records.read(path)) == 1500
        assert store.add(records.read(path)) == 0
        assert Counter(row.device.name for row in store.measurements())["Tesla P4"] == 300
    with gzip.open(path, "rt") as file:
        first = next(csv.DictReader(file))
    assert next(records.read(path)).latency_us == pytest.approx(float(first["Latency"]) * 1e3)


def test_warnings_are_no_part_of_a_clean_read(kt):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(read(kt)) == 4
        assert records.is_record(kt)
