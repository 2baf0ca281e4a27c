"""The gate's verdicts: the tests behind them, when pairs are added, what must not be compared, and how it is told."""

import itertools
import json
import math
import subprocess
import sys

import numpy as np
import pytest
import torch

from costmodel import devices, predictor
from costmodel.gate import changes, telling
from costmodel.gate.verdicts import Finding, Rule, judge, machine_difference, measure, share
from costmodel.measure import revisions
from costmodel.measure.pairs import NOT_THERE, Record
from costmodel.model import decode
from costmodel.predictor import NeuralCostModel
from costmodel.records import Prediction, UserError, Variant

MACHINE = {"cpu": "one", "python": "3.11"}
FINE = Record({"t": 1.0}, fingerprint=MACHINE)


def paired(slowdown, noise):
    """Pairs in microseconds of a test whose head takes (1 + slowdown) times as long, under log noise (n, 2)."""
    return [(100 * math.exp(b), 100 * (1 + slowdown) * math.exp(h)) for b, h in noise]


def bursts(rng, count):
    """Log noise of per-process minima on a shared machine: small, and now and then a process that met a neighbour."""
    small = 0.005 * np.abs(rng.standard_normal((count, 2)))
    return small + (rng.random((count, 2)) < 0.2) * rng.exponential(0.08, (count, 2))


def heavy(rng, count):
    return 0.01 * rng.standard_t(2, (count, 2))


def sequential(suite, rule, thresholds=None):
    """Findings as a run would end: `suite` is {test: max_pairs pairs}."""

    numbers = itertools.count()

    def run(order, tests, together):
        number = next(numbers)
        us = {side: {test: suite[test][number][side == "head"] for test in tests} for side in order}
        return {side: Record(us[side], fingerprint=MACHINE) for side in order}

    return measure(run, list(suite), rule, thresholds=thresholds)


# ---- verdicts ----


@pytest.mark.parametrize(
    ("slowdown", "spread", "threshold", "verdict"),
    [
        (0.10, 0.002, 0.05, "regressed"),
        (0.04, 0.002, 0.05, "ok"),  # slower beyond doubt, by less than the threshold
        (-0.30, 0.002, 0.05, "ok"),
        (0.00, 0.002, 0.05, "ok"),
        (0.03, 0.002, 0.02, "regressed"),
        (0.05, 0.400, 0.05, "inconclusive"),
    ],
)
def test_verdicts(slowdown, spread, threshold, verdict):
    noise = spread * np.random.default_rng(1).standard_normal((18, 2))
    finding = sequential({"t": paired(slowdown, noise)}, Rule(threshold=threshold))["t"]
    assert finding.verdict == verdict
    assert len(finding.pairs) == (18 if verdict == "inconclusive" else 6)
    assert finding.low <= finding.slowdown <= finding.high
    if verdict != "inconclusive":
        assert finding.slowdown == pytest.approx(slowdown, abs=0.01)


def test_a_test_may_have_a_threshold_of_its_own():
    noise = 0.002 * np.random.default_rng(1).standard_normal((18, 2))
    suite = {"strict": paired(0.05, noise), "lax": paired(0.05, noise)}
    found = sequential(suite, Rule(threshold=0.1), {"strict": 0.03})
    assert {name: f.verdict for name, f in found.items()} == {"strict": "regressed", "lax": "ok"}


def test_too_few_pairs_are_inconclusive_whatever_they_say():
    assert judge({"t": [(1.0, 2.0)] * 5}, Rule())["t"].verdict == "inconclusive"
    assert judge({"t": []}, Rule())["t"].verdict == "inconclusive"


def test_holm_asks_more_of_a_suite_than_of_one_test():
    """Six pairs give p = 1/64, which a suite of ten cannot take at alpha 5 % and a suite of one can."""
    slow = [(1.0, 1.2)] * 6
    assert judge({"slow": slow}, Rule())["slow"].verdict == "regressed"
    suite = {"slow": slow} | {f"same{i}": [(1.0, 1.0)] * 6 for i in range(9)}
    assert judge(suite, Rule())["slow"].verdict == "inconclusive"
    suite["slow"] = [(1.0, 1.2)] * 12
    assert judge(suite, Rule())["slow"].verdict == "regressed"


def test_a_verdict_stands_whatever_is_measured_later():
    noise = 0.002 * np.random.default_rng(2).standard_normal((6, 2))
    early = judge({"t": paired(0.1, noise)}, Rule())["t"]
    later = judge({"t": [*paired(0.1, noise), *[(2.0, 1.0)] * 12]}, Rule())["t"]
    assert early == later
    assert early.verdict == "regressed"


# ---- error rates ----


@pytest.mark.parametrize("noise", [bursts, heavy])
@pytest.mark.parametrize(("tests", "suites"), [(1, 300), (10, 40)])
@pytest.mark.parametrize("threshold", [0.05, 0.0])
def test_a_suite_without_change_gives_few_false_alarms(noise, tests, suites, threshold):
    """At threshold 0 the sign-flip test alone keeps the promise of 5 % a suite, through up to three looks."""
    rng = np.random.default_rng(7)
    rule = Rule(threshold=threshold)
    alarms = 0
    for _ in range(suites):
        found = sequential({str(i): paired(0.0, noise(rng, 18)) for i in range(tests)}, rule)
        alarms += any(f.verdict == "regressed" for f in found.values())
    assert alarms <= (0.01 if threshold else 0.05) * suites


@pytest.mark.parametrize("noise", [bursts, heavy])
def test_ten_percent_are_found_at_a_threshold_of_five(noise):
    rng = np.random.default_rng(8)
    found = [sequential({"t": paired(0.10, noise(rng, 18))}, Rule())["t"].verdict for _ in range(200)]
    assert found.count("regressed") >= 0.95 * len(found)
    assert found.count("ok") == 0


# ---- running ----


def test_pairs_run_in_both_orders_and_only_undecided_tests_again():
    rng = np.random.default_rng(3)
    suite = {
        "quiet": paired(0.0, 0.001 * rng.standard_normal((18, 2))),
        "noisy": paired(0.05, 0.4 * heavy(rng, 18) * 50),
    }
    calls, told = [], []

    def run(order, tests, together):
        calls.append((tuple(order), tuple(tests), together))
        us = {side: {test: suite[test][len(calls) - 1][side == "head"] for test in tests} for side in order}
        return {side: Record(us[side], fingerprint=MACHINE) for side in order}

    found = measure(run, list(suite), Rule(), progress=lambda pair, tests: told.append((pair, tests)))
    assert [f.verdict for f in found.values()] == ["ok", "inconclusive"]
    orders = [order for order, _, _ in calls]
    assert len(orders) == 18
    assert [set(orders[i : i + 2]) for i in range(0, 18, 2)] == [{("base", "head"), ("head", "base")}] * 9
    assert {tests for _, tests, _ in calls[:6]} == {("quiet", "noisy")}
    assert {tests for _, tests, _ in calls[6:]} == {("noisy",)}
    assert all(together for _, _, together in calls)
    assert told[0] == (1, 2)
    assert told[-1] == (18, 1)


def test_the_order_of_the_sides_is_random_and_the_seeds():
    def orders(seed):
        taken = []

        def run(order, tests, together):
            taken.append(tuple(order))
            return {side: Record({"t": 1.0 + len(taken) % 7}, fingerprint=MACHINE) for side in order}

        measure(run, ["t"], Rule(), seed=seed)
        return tuple(taken)

    assert orders(1) == orders(1)
    assert len({orders(seed) for seed in range(20)}) > 1


def one_port(calls, *, for_good=False):
    """A `run` whose test "port" fails on the second of two sides that live at once, or always on the base; "free" does
    not care, and "new" is not on the base."""

    def run(order, tests, together):
        calls.append((tuple(tests), together))
        records = {}
        for side in order:
            us = dict.fromkeys(tests, 2.0 if side == "head" else 1.0)
            failed = {}
            if "port" in us and ((together and side == order[1]) or (for_good and side == "base")):
                failed["port"] = "failed: port in use"
            if "new" in us and side == "base":
                failed["new"] = NOT_THERE
            records[side] = Record({t: v for t, v in us.items() if t not in failed}, failed, fingerprint=MACHINE)
        return records

    return run


def test_what_fails_beside_the_other_side_runs_one_after_the_other_from_then_on():
    calls = []
    found = measure(one_port(calls), ["free", "port", "new"], Rule(pairs=7, max_pairs=7))
    assert calls[:4] == [(("free", "port", "new"), True), (("port",), False), (("free",), True), (("port",), False)]
    assert calls[4:] == calls[2:4] * 5
    assert {name: f.verdict for name, f in found.items()} == {
        "free": "regressed", "port": "regressed", "new": "not comparable"
    }  # fmt: skip
    assert len(found["port"].pairs) == 7
    assert found["port"].reason.startswith("base and head ran one after the other, since side by side: ")
    assert found["port"].reason.endswith("failed: port in use")
    assert found["free"].reason == ""
    assert found["new"].reason == f"base: {NOT_THERE}"


def test_what_fails_alone_too_is_not_comparable_and_not_tried_a_third_time():
    calls = []
    finding = measure(one_port(calls, for_good=True), ["port"], Rule())["port"]
    assert calls == [(("port",), True), (("port",), False)]
    assert finding.verdict == "not comparable"
    assert finding.reason == "base: failed: port in use"


@pytest.mark.parametrize(
    ("base", "head", "reason"),
    [
        (Record({"t": 1.0}, fingerprint={"gpu": "A"}), Record({"t": 1.0}, fingerprint={"gpu": "B"}), "'A', then 'B'"),
        (Record(failed={"t": "not there"}, fingerprint=MACHINE), FINE, "base: not there"),
        (FINE, Record(failed={"t": "boom"}, fingerprint=MACHINE), "head: boom"),
        (Record(error="it imported x.py"), FINE, "base: it imported x.py"),
    ],
)
def test_what_must_not_be_compared_is_not_and_says_why(base, head, reason):
    runs = []

    def run(order, tests, together):
        runs.append(together)
        return {"base": base, "head": head}

    finding = measure(run, ["t"], Rule())["t"]
    assert finding.verdict == "not comparable"
    assert reason in finding.reason
    assert runs == ([True] if NOT_THERE in reason else [True, False])


def test_fingerprints_that_are_equal_or_lack_something():
    assert machine_difference(MACHINE, dict(MACHINE)) == ""
    assert machine_difference(MACHINE, MACHINE | {"gpu": "H200"}) == "gpu 'none', then 'H200'"


def test_mistakes_are_told():
    with pytest.raises(UserError, match="5x"):
        share("5x")
    assert [share(text) for text in ("5%", "0.05", " 2.5 % ")] == pytest.approx([0.05, 0.05, 0.025])
    for wrong in ({"threshold": -1.0}, {"alpha": 0.0}, {"pairs": 0}, {"pairs": 9, "max_pairs": 6}, {"max_pairs": 40}):
        with pytest.raises(UserError, match="expected"):
            Rule(**wrong)
    with pytest.raises(UserError, match="max-pairs"):
        Rule(pairs=4, max_pairs=4).check_power(1)
    with pytest.raises(UserError, match="max-pairs"):
        Rule(max_pairs=6).check_power(10)
    Rule().check_power(1000)


# ---- how it is told ----

FOUND = [
    Finding("a.py::fine[x|y]", "ok", 0.05, 0.01, -0.01, 0.02, p=0.4, pairs=((10.0, 10.1), (20.0, 20.2))),
    Finding("a.py::slow", "regressed", 0.05, 0.5, 0.4, 0.6, p=0.016, pairs=((10.0, 15.0),), path="src/a,b.py", line=7),
    Finding("a.py::new", "not comparable", 0.05, reason="base: not there"),
]


def test_a_table_has_regressions_first():
    lines = telling.table(FOUND)
    assert [line.split()[0] for line in lines] == ["verdict", "regressed", "not", "ok"]
    assert "+50.0%" in lines[1]
    assert "+40.0% .. +60.0%" in lines[1]
    assert "p 0.016, 1 pairs" in lines[1]
    assert lines[2].endswith("a.py::new: base: not there")


def test_markdown_escapes_what_would_end_a_cell():
    text = telling.markdown(FOUND, "the gate", "nothing")
    assert text.splitlines()[2] == "1 regressed, 1 ok, 1 not comparable"
    assert "a.py::fine[x\\|y]" in text
    assert {line.replace("\\|", "").count("|") for line in text.splitlines() if line.startswith("|")} == {6}
    assert "nothing" in telling.markdown([], "the gate", "nothing")


def test_annotations_name_the_changed_line_of_regressions_alone():
    (line,) = telling.github_commands(FOUND)
    assert line.startswith("::error file=src/a%2Cb.py,line=7,title=a.py%3A%3Aslow::regressed: measured 50.0%25 slower")


def test_json_holds_every_pair_and_no_nan():
    document = json.loads(json.dumps(telling.benchmark_json(FOUND, "head", machine=MACHINE, commit="c", now="n")))
    fine, slow = document["benchmarks"]
    assert fine["stats"]["data"] == pytest.approx([10.1e-6, 20.2e-6])
    assert fine["stats"]["min"] == pytest.approx(10.1e-6)
    assert slow["extra_info"]["costmodel"]["pairs_us"] == [[10.0, 15.0]]
    assert slow["extra_info"]["costmodel"]["verdict"] == "regressed"
    assert telling.extra(FOUND[2])["slowdown"] is None


# ---- predicted ----

KERNEL = """
from costmodel.records import Config, Problem, SearchSpace, TensorSpec
from costmodel.workloads import cpp_workload

def make_problem(*, N):
    return Problem("axpy", (TensorSpec((N,), "f32"),), (("N", N),), flops=2 * N, bytes=12 * N)

WORKLOAD = cpp_workload(
    __file__, space=SearchSpace.of(UNROLL=(1, 4), THREADS=(1, 2)), default=Config.of(UNROLL=1, THREADS=1),
    make_problem=make_problem, problems={"small": {"N": 1000}, "large": {"N": 10**6}},
    make_inputs=lambda problem, seed: (), reference=lambda problem, inputs: (),
)
"""
TEXT = 'extern "C" void run(void* const* buffers, const long long* sizes) {{ {} }}\n'
CPU = devices.detect("cpu")


@pytest.fixture
def trees(tmp_path):
    """A base and a head with three kernels, of which one changed; and a Python file that must not be executed."""
    for side, body in (("base", "once();"), ("head", "once(); twice();")):
        folder = tmp_path / side
        folder.mkdir()
        for name in ("moved", "still"):
            (folder / f"{name}.py").write_text(KERNEL)
            (folder / f"{name}.cpp").write_text(TEXT.format(body if name == "moved" else "once();"))
        (folder / "script.py").write_text(f"raise SystemExit('{side}')\n")
    (tmp_path / "head" / "new.py").write_text(KERNEL)
    (tmp_path / "head" / "new.cpp").write_text(TEXT.format("new();"))
    (tmp_path / "head" / "broken.py").write_text("WORKLOAD = missing\n")
    return tmp_path / "head", tmp_path / "base"


class Told:
    """A model that says what it is told to: log2 slowdowns, and whether to trust it."""

    def __init__(self, drawn, *, trust=True):
        self.drawn, self.trust = np.array(drawn, dtype=float), trust

    def predict(self, variants, device):
        return [Prediction((1.0,), (1.0,), trust=self.trust, reason="never seen") for _ in variants]

    def slowdowns(self, pairs, device):
        assert all(before.problem == after.problem for before, after in pairs)
        return np.tile(self.drawn, (len(pairs), 1))


def test_changed_kernels_are_loaded_from_both_sides(trees):
    files = {"moved.cpp": 1, "script.py": 1, "still.py": 4, "new.cpp": 1, "new.py": 1, "broken.py": 1, "gone.cpp": 1}
    found = {change.name: change for change in changes.changed_kernels(*trees, files)}
    assert set(found) == {"moved", "new", "broken"}  # still.py changed and means the same
    assert "twice" in found["moved"].after.kernel.source
    assert "twice" not in found["moved"].before.kernel.source
    assert found["moved"].path == "moved.cpp"
    assert found["new"].reason == "base: not there"
    assert "NameError" in found["broken"].reason


@pytest.mark.parametrize(
    ("drawn", "trust", "verdicts"),
    [
        ([0.5, 0.6, 0.7, 0.8], True, ["regressed"] * 2),
        ([-0.5, -0.1, 0.0, 0.01], True, ["ok"] * 2),
        ([-0.5, 0.5, 0.5, -0.1], True, ["inconclusive"] * 2),
        ([0.5, 0.6, 0.7, 0.8], False, ["inconclusive"] * 2),
        ([0.0, 0.0, 0.0, 0.0], False, ["ok"] * 2),
    ],
)
def test_a_change_is_priced_on_every_problem(trees, drawn, trust, verdicts):
    changed = changes.changed_kernels(*trees, {"moved.cpp": 1})
    found = changes.predict(changed, Told(drawn, trust=trust), CPU, threshold=0.05, probable=0.8)
    assert [f.verdict for f in found] == verdicts
    assert [f.name for f in found] == ["moved[small]", "moved[large]"]
    assert found[0].probability == np.mean(np.array(drawn) > math.log2(1.05))
    doubtful = not trust and any(drawn)
    assert found[0].reason.startswith("never seen; no text of it can take less than ") == doubtful
    assert bool(found[0].reason) == doubtful


def test_what_cannot_be_priced_says_why(trees):
    changed = changes.changed_kernels(*trees, {"moved.cpp": 1, "new.cpp": 2})
    found = changes.predict(changed, Told([1.0]), devices.find("H200"), threshold=0.05, probable=0.8)
    assert [(f.verdict, f.line) for f in found] == [("not comparable", 1), ("not comparable", 2)]
    assert "cpp kernel does not run" in found[0].reason
    with pytest.raises(UserError, match="probability"):
        changes.predict(changed, Told([1.0]), CPU, threshold=0.05, probable=0.3)


def test_a_network_compares_two_texts(trees):
    """The shipped model: equal texts are equally fast, the differences are antisymmetric, and comments are no text."""
    model = NeuralCostModel.from_pretrained()
    model = NeuralCostModel(model.members[:2], model.tokenizer, model.details)
    (change,) = changes.changed_kernels(*trees, {"moved.cpp": 1})
    before, after = (
        Variant(w.kernel, w.problems["large"], w.default) for w in (change.before, change.after)
    )  # fmt: skip
    told = model.slowdowns([(before, after), (after, before), (before, before)], CPU)
    assert told.shape[0] == 3
    assert np.median(told[0]) == pytest.approx(-np.median(told[1]), abs=0.05)
    assert np.isfinite(told).all()
    assert not told[2].any()
    medians = [p.median_us for p in model.predict([before, after], CPU)]
    assert np.median(told[0]) == pytest.approx(math.log2(medians[1] / medians[0]), abs=0.3)


def test_errors_that_two_texts_share_cancel():
    """Two normal laws of one spread s differ by one of spread s sqrt(2 (1 - correlation))."""
    support = torch.linspace(-4, 4, 401, dtype=torch.float64)[None]
    first, second = (
        decode.Distribution(support, torch.softmax(-((support - mean) ** 2) / 2 / 0.5**2, dim=-1), torch.zeros(1))
        for mean in (0.0, 0.3)
    )
    drawn = predictor._difference(first, second)
    assert np.mean(drawn) == pytest.approx(0.3, abs=0.01)
    assert np.std(drawn) == pytest.approx(0.5 * math.sqrt(2 * (1 - predictor.EDIT_CORRELATION)), rel=0.05)


def test_the_gate_needs_no_torch():
    code = (
        "import sys, costmodel.gate.verdicts, costmodel.gate.changes, costmodel.gate.telling, costmodel.measure.pairs"
    )
    assert subprocess.run([sys.executable, "-c", f"{code}; sys.exit('torch' in sys.modules)"]).returncode == 0


# ---- git ----


def test_changed_lines_and_fork_point(tmp_path):
    def git(*arguments):
        identity = ("-c", "user.name=n", "-c", "user.email=e@x")
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True)

    git("init", "--initial-branch=main")
    (tmp_path / "a file.txt").write_text("one\ntwo\nthree\n")
    (tmp_path / "gone.txt").write_text("x\n")
    git("add", "-A")
    git("commit", "-m", "one")
    git("checkout", "-b", "work")
    (tmp_path / "a file.txt").write_text("one\ntwo\n3\n")
    (tmp_path / "gone.txt").unlink()
    git("commit", "-a", "-m", "work")
    git("checkout", "main")
    (tmp_path / "later.txt").write_text("after the fork\n")
    git("add", "-A")
    git("commit", "-m", "later")
    git("checkout", "work")
    root = revisions.toplevel(tmp_path)
    base = revisions.fork_point(root, "main")
    assert revisions.changed_lines(root, base) == {"a file.txt": 3}
    (tmp_path / "a file.txt").write_text("1\ntwo\n3\n")  # not committed
    assert revisions.changed_lines(root, base) == {"a file.txt": 1}
    with revisions.checkout(root, base) as tree:
        assert (tree / "a file.txt").read_text() == "one\ntwo\nthree\n"
        assert not (tree / "later.txt").exists()
    assert not tree.exists()
    with pytest.raises(UserError, match="no revision 'nowhere'"):
        revisions.fork_point(root, "nowhere")
