"""The gate as its users start it: pytest in a scratch repository with git, and nothing else.

What is timed sleeps instead of computing, and thresholds are far from the effects, so that no load makes a test fail.
"""

import itertools
import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from costmodel import workloads
from costmodel.predictor import NeuralCostModel

pytest_plugins = ("pytester",)

PLUGIN = ("-p", "costmodel.pytest_plugin", "-p", "no:cacheprovider")
WORK = "import time\n\n\ndef work():\n    time.sleep({})\n    return 42\n\n\ndef other():\n    time.sleep(0.001)\n"
TESTS = """
from work import other, work

def test_work(latency):
    assert latency(work) == 42

def test_other(latency):
    latency(other)

def test_plain():
    assert True
"""


@pytest.fixture(autouse=True)
def _bare(monkeypatch):
    """No plugins but those asked for, and not the surroundings of a CI that runs this suite."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    for name in ("GITHUB_ACTIONS", "GITHUB_BASE_REF", "GITHUB_STEP_SUMMARY", "PYTEST_ADDOPTS"):
        monkeypatch.delenv(name, raising=False)


def git(folder, *arguments):
    identity = ("-c", "user.name=n", "-c", "user.email=e@x", "-c", "commit.gpgsign=false")
    done = subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout


def commit(folder, **files):
    """Write {path with / as __ and . as _DOT_: text} and commit everything."""
    for name, text in files.items():
        path = folder / name.replace("_DOT_", ".").replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    if not (folder / ".git").exists():
        git(folder, "init", "--initial-branch=main")
    git(folder, "add", "-A")
    git(folder, "commit", "--allow-empty", "-m", "step")


def gate(pytester, *arguments, tier="measure", base="HEAD~1", pairs=6):
    few = (f"--costmodel-pairs={pairs}", f"--costmodel-max-pairs={pairs}", "--costmodel-threshold=50%")
    return pytester.runpytest_subprocess(
        *PLUGIN, f"--costmodel-gate={tier}", f"--costmodel-base={base}", *few, *arguments
    )


# ---- measured ----


def test_a_commit_that_doubles_a_time_is_caught(pytester, monkeypatch):
    """In a project below the repository's root, with its package in src; everything that tells of it, in one run."""
    project = pytester.path / "py"
    ini = "[pytest]\npythonpath = src\ntestpaths = tests\n"
    commit(
        pytester.path, py__pytest_DOT_ini=ini, py__src__work_DOT_py=WORK.format(0.002), py__tests__test_it_DOT_py=TESTS
    )
    commit(pytester.path, py__src__work_DOT_py=WORK.format(0.005))
    monkeypatch.chdir(project)
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(pytester.path / "summary.md"))
    done = gate(pytester, "--costmodel-json=saved", "--junitxml=junit.xml")
    assert done.ret == pytest.ExitCode.TESTS_FAILED
    done.assert_outcomes(failed=1, passed=2)
    done.stdout.fnmatch_lines(
        [
            "regressed: measured *% slower than base, threshold 50% (p 0.*, 6 pairs)",
            "*costmodel gate: this checkout against HEAD~1*",
            "regressed *tests/test_it.py::test_work",
            "*tests/test_it.py::test_other",
            "::error file=py/src/work.py,line=5,title=*test_work::regressed: *",
            "FAILED tests/test_it.py::test_work*",
        ]
    )
    assert '<property name="costmodel_verdict" value="regressed"' in (project / "junit.xml").read_text()
    assert "1 regressed" in (pytester.path / "summary.md").read_text()
    saved = {side: json.loads((project / "saved" / f"{side}.json").read_text()) for side in ("base", "head")}
    times = {
        side: next(b["stats"]["min"] for b in document["benchmarks"] if b["name"] == "test_work")
        for side, document in saved.items()
    }
    assert times["base"] >= 0.002
    assert times["head"] >= 0.005
    assert saved["head"]["commit_info"]["id"] == git(project, "rev-parse", "HEAD").strip()
    assert len(git(project, "worktree", "list").splitlines()) == 1
    if shutil.which("pytest-benchmark", path=str(Path(sys.executable).parent)):
        command = [Path(sys.executable).parent / "pytest-benchmark", "compare", "saved/base.json", "saved/head.json"]
        compared = subprocess.run(command, cwd=project, capture_output=True, text=True)
        assert compared.returncode == 0, compared.stderr
        assert compared.stdout.count("test_work") == 2


def test_the_same_commit_twice_is_no_regression(pytester):
    commit(pytester.path, work_DOT_py=WORK.format(0.002), test_it_DOT_py=TESTS)
    done = gate(pytester, "--costmodel-alpha=60%", base="HEAD", pairs=2)
    assert done.ret == pytest.ExitCode.OK
    done.assert_outcomes(passed=3)
    assert "regressed" not in done.stdout.str()


def test_benchmarks_of_pytest_benchmark_are_gated_and_its_json_says_so(pytester):
    pytest.importorskip("pytest_benchmark")
    tests = "from work import work\n\ndef test_work(benchmark):\n    assert benchmark(work) == 42\n"
    commit(pytester.path, work_DOT_py=WORK.format(0.002), test_it_DOT_py=tests)
    plugin = ("-p", "benchmark", "--benchmark-storage=stored", "--benchmark-max-time=0.1")
    pytester.runpytest_subprocess(*PLUGIN, *plugin, "--benchmark-save=before").assert_outcomes(passed=1)
    commit(pytester.path, work_DOT_py=WORK.format(0.005))
    done = gate(pytester, *plugin, "--benchmark-json=now.json", "--benchmark-compare", pairs=5)
    done.assert_outcomes(failed=1)
    done.stdout.fnmatch_lines(["regressed *test_it.py::test_work", "test_work (NOW) *"])
    (bench,) = json.loads((pytester.path / "now.json").read_text())["benchmarks"]
    assert bench["extra_info"]["costmodel"]["verdict"] == "regressed"
    assert len(bench["extra_info"]["costmodel"]["pairs_us"]) == 5


def test_what_the_base_lacks_or_fails_is_not_comparable(pytester):
    commit(pytester.path, test_it_DOT_py="def test_old(latency):\n    assert latency(int) == 1\n")
    new = "def test_old(latency):\n    assert latency(int) == 0\n\ndef test_new(latency):\n    latency(int)\n"
    commit(pytester.path, test_it_DOT_py=new, test_more_DOT_py="def test_more(latency):\n    latency(int)\n")
    done = gate(pytester)
    done.assert_outcomes(passed=3)
    done.stdout.fnmatch_lines_random(
        [
            "not comparable *test_it.py::test_old: base: failed: *assert 0 == 1*",
            "not comparable *test_it.py::test_new: base: not there",
            "not comparable *test_more.py::test_more: base: not there",
        ]
    )


@pytest.mark.parametrize("fixture", ["latency", "benchmark"])
def test_base_and_head_take_turns(pytester, monkeypatch, fixture):
    """Of the calls of two processes that live at once, none overlaps one of the other side."""
    pytest.importorskip("pytest_benchmark")
    test = """
    import os, time

    def work():
        begin = time.monotonic_ns()
        time.sleep(0.002)
        with open(os.environ["CALLS"], "a") as file:
            file.write(f"{begin} {time.monotonic_ns()} {os.getpid()}\\n")

    def test_it(FIXTURE):
        FIXTURE(work)
    """
    commit(pytester.path, test_it_DOT_py=textwrap.dedent(test).replace("FIXTURE", fixture))
    calls = pytester.path / "calls"
    monkeypatch.setenv("CALLS", str(calls))
    gate(pytester, "-p", "benchmark", "--benchmark-disable", "--costmodel-alpha=60%", base="HEAD", pairs=1)
    *timed, _ = [tuple(map(int, line.split())) for line in sorted(calls.read_text().splitlines())]
    assert len({process for *_, process in timed}) == 2
    assert all(end <= begin for (_, end, _), (begin, *_) in itertools.pairwise(timed))
    changes = sum(a != b for (*_, a), (*_, b) in itertools.pairwise(timed))
    assert changes >= 4  # that of two runs one after the other is 1


def test_what_only_one_process_can_have_is_timed_one_after_the_other(pytester, monkeypatch):
    tests = """
    import os, pathlib, pytest
    from work import work

    @pytest.fixture
    def port():
        path = pathlib.Path(os.environ["PORT"])
        path.touch(exist_ok=False)
        yield
        path.unlink()

    def test_port(port, latency):
        latency(work)

    def test_free(latency):
        latency(work)
    """
    monkeypatch.setenv("PORT", str(pytester.path / "port"))
    ini = "[pytest]\naddopts = -x\n"  # which must not end a side at the port
    commit(pytester.path, pytest_DOT_ini=ini, work_DOT_py=WORK.format(0.002), test_it_DOT_py=textwrap.dedent(tests))
    commit(pytester.path, work_DOT_py=WORK.format(0.005))
    done = gate(pytester, "--costmodel-alpha=60%", "--maxfail=0", pairs=2)
    done.assert_outcomes(failed=2)
    done.stdout.fnmatch_lines_random(
        [
            "regressed *test_it.py::test_port: base and head ran one after the other, since side by side: *FileExists*",
            "regressed *test_it.py::test_free",
        ]
    )


def test_a_side_that_dies_ends_neither_the_other_one_nor_the_gate(pytester):
    test = "import os\n\ndef test_one(latency):\n    latency(int)\n\ndef test_two(latency):\n    latency(DOES)\n"
    commit(pytester.path, test_it_DOT_py=test.replace("DOES", "lambda: os._exit(7)"))
    commit(pytester.path, test_it_DOT_py=test.replace("DOES", "int"))
    done = gate(pytester, "--costmodel-alpha=60%", pairs=2)
    done.assert_outcomes(passed=2)
    done.stdout.fnmatch_lines(["not comparable *test_two: base: pytest ended with exit code 7: *"])


def test_a_timer_that_the_project_chose_is_kept(pytester):
    pytest.importorskip("pytest_benchmark")
    test = """
    import time

    def work():
        time.sleep(0.02)
        end = time.process_time() + 0.002
        while time.process_time() < end:
            pass

    def test_it(benchmark):
        benchmark(work)
    """
    ini = "[pytest]\naddopts = --benchmark-timer=time.process_time\n"
    commit(pytester.path, pytest_DOT_ini=ini, test_it_DOT_py=textwrap.dedent(test))
    few = ("--benchmark-disable", "--costmodel-alpha=60%", "--costmodel-json=.")
    gate(pytester, "-p", "benchmark", *few, base="HEAD", pairs=1)
    for side in ("base", "head"):
        (bench,) = json.loads((pytester.path / f"{side}.json").read_text())["benchmarks"]
        assert bench["stats"]["max"] < 0.02  # the sleep costs no time of the processor


def test_a_base_that_imports_the_heads_files_is_no_base(pytester):
    """As with a package that is installed in a way which leads every process to this checkout."""
    root = str(pytester.path)
    conftest = f"import sys\n\ndef pytest_configure():\n    sys.path.insert(0, {root!r})\n"
    commit(pytester.path, work_DOT_py=WORK.format(0.001), t__conftest_DOT_py=conftest, t__test_it_DOT_py=TESTS)
    done = gate(pytester, "--import-mode=importlib", "--costmodel-args=--import-mode=importlib", base="HEAD")
    done.stdout.fnmatch_lines(["not comparable *test_work: base: it imported */work.py of the head*"])


def test_an_installed_copy_is_not_what_changed(pytester, monkeypatch):
    installed = pytester.path.parent / "site-packages"
    installed.mkdir()
    (installed / "work.py").write_text(WORK.format(0.001))
    monkeypatch.setenv("PYTHONPATH", f"{installed}{os.pathsep}{Path(workloads.__file__).parent.parent}")
    commit(pytester.path, src__work_DOT_py=WORK.format(0.001), test_it_DOT_py=TESTS)
    commit(pytester.path, src__work_DOT_py=WORK.format(0.005))
    done = gate(pytester)
    done.stdout.fnmatch_lines(["not comparable *test_work: base: it imported */site-packages/work.py*pip install -e*"])


def test_a_base_is_built_first_and_failing_to_is_told(pytester):
    commit(pytester.path, test_it_DOT_py="import made\n\ndef test_it(latency):\n    latency(made.f)\n")
    (pytester.path / "made.py").write_text("def f(): pass\n")
    done = gate(pytester, base="HEAD")
    done.stdout.fnmatch_lines(["not comparable *base: *No module named 'made'*"])
    build = "--costmodel-build=echo 'import time; f = lambda: time.sleep(0.001)' > made.py"
    assert "not comparable" not in gate(pytester, build, "--costmodel-alpha=60%", base="HEAD", pairs=1).stdout.str()
    done = gate(pytester, "--costmodel-build=echo E oh; false", base="HEAD")
    assert done.ret == pytest.ExitCode.USAGE_ERROR
    done.stderr.fnmatch_lines(["ERROR: --costmodel-build ended with exit code 1 on the base: oh"])


def test_ini_keys_and_the_marker(pytester):
    ini = "[pytest]\ncostmodel_base = HEAD\ncostmodel_pairs = 1\ncostmodel_max_pairs = 2\ncostmodel_alpha = 90%\n"
    marked = "import pytest\n\n@pytest.mark.costmodel_gate(threshold='300%')\ndef test_it(latency):\n    latency(int)\n"
    commit(pytester.path, pytest_DOT_ini=ini, test_it_DOT_py=marked)
    done = pytester.runpytest_subprocess(*PLUGIN, "--costmodel-gate=measure", "--strict-markers", "--costmodel-json=.")
    done.assert_outcomes(passed=1)
    (bench,) = json.loads((pytester.path / "head.json").read_text())["benchmarks"]
    assert bench["stats"]["rounds"] in (1, 2)
    assert bench["extra_info"]["costmodel"]["threshold"] == 3.0


# ---- predicted ----


@pytest.fixture
def kernels(pytester):
    """A repository with two kernels, and a small model that trusts itself with every kernel and device."""
    shipped = workloads.shipped("kernels") / "cpp"
    for path in (*shipped.glob("transpose*"), *shipped.glob("nbody*")):
        shutil.copy(path, pytester.path)
    commit(pytester.path)
    model = NeuralCostModel.from_pretrained()
    details = {name: value for name, value in model.details.items() if name != "familiarity"}
    NeuralCostModel(model.members[:1], model.tokenizer, details).save_pretrained(pytester.path / "model")


def predicted(pytester, *arguments):
    five = ("--costmodel-threshold=5%", "--costmodel-model=model")
    return gate(pytester, *arguments, *five, tier="predict", base="HEAD")


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_changed_kernels_are_priced_and_no_test_is_run(pytester, kernels, monkeypatch):
    """A remark costs nothing; a default of one row a tile does, says the model."""
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    (pytester.path / "test_it.py").write_text("raise SystemExit('collected')\n")
    edit(pytester.path / "nbody.cpp", 'extern "C"', '// a remark\nextern "C"')
    edit(pytester.path / "transpose.py", "default=Config.of(TILE_R=32", "default=Config.of(TILE_R=1")
    done = predicted(pytester, "--junitxml=junit.xml", "-v")
    assert done.ret == pytest.ExitCode.TESTS_FAILED
    done.stdout.fnmatch_lines(
        [
            "nbody.cpp::nbody* PASSED*",
            "transpose.py::transpose[[]square[]] FAILED*",
            "regressed: predicted *% slower than base, threshold 5% (*% likely)",
            "ok *+0.0% *0% likely *nbody[[]*",
            "::error file=transpose.py,line=*",
        ]
    )
    assert '<property name="costmodel_probability" value="0.0"' in (pytester.path / "junit.xml").read_text()


def test_no_changed_kernel_is_fine(pytester, kernels):
    (pytester.path / "notes.md").write_text("no kernel\n")
    told, page = pytester.path / "told.md", pytester.path / "told.html"
    done = predicted(pytester, f"--costmodel-markdown={told}", f"--costmodel-html={page}")
    assert done.ret == pytest.ExitCode.OK
    done.stdout.fnmatch_lines(["nothing to compare: no kernel changed"])
    assert "no kernel changed" in told.read_text()
    assert "Nothing to compare" in page.read_text()


# ---- without a gate, and mistakes ----


@pytest.mark.parametrize("option", ["html", "json"])
def test_a_file_that_cannot_be_written_is_one_line_and_hides_no_finding(pytester, option):
    commit(pytester.path, test_it_DOT_py="def test_it(latency):\n    latency(int)\n", file="")
    done = gate(pytester, f"--costmodel-{option}=file/page", "--costmodel-alpha=60%", base="HEAD", pairs=1)
    assert done.ret == pytest.ExitCode.USAGE_ERROR
    done.stdout.fnmatch_lines(["* 1 pairs *test_it.py::test_it*"])
    assert len([line for line in done.errlines if line.strip()]) == 1
    done.stderr.fnmatch_lines(["ERROR: *file/page*"])


def test_without_a_gate_latency_calls_once_and_returns(pytester):
    pytester.makepyfile(
        """
        def test_once(latency):
            calls = []
            assert latency(lambda x, *, y: calls.append(1) or x + y, 1, y=2) == 3
            assert calls == [1]

        def test_twice(latency):
            latency(int)
            latency(int)
        """
    )
    done = pytester.runpytest_subprocess(*PLUGIN)
    done.assert_outcomes(passed=1, failed=1)
    done.stdout.fnmatch_lines(["*latency was called twice*"])
    assert "costmodel gate" not in done.stdout.str()


@pytest.mark.parametrize(
    ("arguments", "repository", "message"),
    [
        (("--costmodel-gate=measure", "--costmodel-base=HEAD"), False, "*is not in a git repository*"),
        (("--costmodel-gate=measure", "--costmodel-base=nowhere"), True, "*no revision 'nowhere'*fetch*"),
        (("--costmodel-gate=predict",), True, "*give --costmodel-base=REV"),
        (("--costmodel-gate=measure", "--costmodel-base=HEAD", "--costmodel-threshold=5x"), True, "*got '5x'*"),
        (("--costmodel-gate=measure", "--costmodel-base=HEAD", "--costmodel-pairs=few"), True, "*whole number*"),
        (("--costmodel-gate=measure", "--costmodel-base=HEAD", "--costmodel-max-pairs=2"), True, "*pairs*"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_4(pytester, arguments, repository, message):
    pytester.makepyfile(test_it="def test_it(latency):\n    latency(int)\n")
    if repository:
        commit(pytester.path)
    done = pytester.runpytest_subprocess(*PLUGIN, *arguments)
    assert done.ret == pytest.ExitCode.USAGE_ERROR
    assert len([line for line in done.errlines if line.strip()]) == 1
    done.stderr.fnmatch_lines(["ERROR: " + message])


@pytest.mark.parametrize("argument", ["--costmodel-gate=guess", "--costmodel-speed=9"])
def test_unknown_options_are_refused_by_pytest_itself(pytester, argument):
    done = pytester.runpytest_subprocess(*PLUGIN, argument)
    assert done.ret == pytest.ExitCode.USAGE_ERROR
    done.stderr.fnmatch_lines(["*error:*" + argument.partition("=")[0] + "*"])


def test_the_help_lists_every_option(pytester):
    done = pytester.runpytest_subprocess(*PLUGIN, "--help")
    assert done.ret == pytest.ExitCode.OK
    done.stdout.fnmatch_lines(
        ["*--costmodel-gate={measure,predict}*", "*--costmodel-threshold=SHARE*", "*default: 5%*"]
    )
    assert "--costmodel-side" not in done.stdout.str()


def test_loading_the_plugin_costs_nothing():
    """Beyond pytest it brings the standard library and itself: neither torch nor numpy, and not the gate."""
    code = (
        "import sys, pytest; before = set(sys.modules); import costmodel.pytest_plugin\n"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names)\n"
        "print(sorted(new), sorted(name for name in sys.modules if name.startswith('costmodel.')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert done.stdout.strip() == "['costmodel'] ['costmodel.pytest_plugin']"
