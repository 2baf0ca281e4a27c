"""The CI action: its YAML says what its script reads, and the script does on a pull request what the page promises.

`gh` is a script that writes down what it was asked; where a change is priced, git, pytest and the model are real.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from test_scratch_repository import git, plain_environment

from costmodel.template import write_template

ACTION = Path(__file__).resolve().parent.parent / ".github/actions/predict"
SCRIPT = (ACTION / "predict.sh").read_text()
GH = """#!{python}
import json, os, sys
from pathlib import Path

folder = Path(__file__).parent
with (folder / "asked.jsonl").open("a") as file:
    file.write(json.dumps(sys.argv[1:]) + "\\n")
if "--method" not in sys.argv:
    print(os.environ["COMMENTS"], end="")
sys.exit(int(os.environ["GH_CODE"]))
"""
# For `-m pytest`: the table and the exit code of a gate; else Python itself.
GATE = """#!/usr/bin/env bash
if [ "$2" != -m ]; then exec {python} "$@"; fi
for option in "$@"; do
  case "$option" in --costmodel-markdown=*) printf "%s" "$TABLE" > "${{option#*=}}" ;; esac
done
exit "$GATE_CODE"
"""


class Job:
    """A folder that stands for a job on a pull request, and what its steps left."""

    def __init__(self, folder, repository):
        self.folder, self.repository = folder, repository
        self.script("gh", GH)
        (folder / "event.json").write_text(json.dumps({"pull_request": {"number": 7, "base": {"sha": "BASE"}}}))
        (folder / "summary.md").touch()

    def script(self, name, text):
        path = self.folder / name
        path.write_text(text.format(python=sys.executable))
        path.chmod(0o755)
        return str(path)

    def predict(self, **changed):
        environment = {
            **plain_environment(), "PATH": f"{self.folder}{os.pathsep}{os.environ['PATH']}", "GITHUB_ACTIONS": "true",
            "GITHUB_EVENT_PATH": f"{self.folder}/event.json", "GITHUB_STEP_SUMMARY": f"{self.folder}/summary.md",
            "GITHUB_REPOSITORY": "me/mine", "RUNNER_TEMP": str(self.folder), "PYTHON": sys.executable,
            "DEVICE": "", "THRESHOLD": "5%", "PROBABILITY": "80%", "MODEL": "", "BASE": "", "COMMENT": "true",
            "FAIL": "true", "GH_TOKEN": "secret", "COMMENTS": "", "GH_CODE": "0",
        }  # fmt: skip
        command = ["bash", ACTION / "predict.sh", "predict"]
        done = subprocess.run(
            command, cwd=self.repository, env={**environment, **changed}, capture_output=True, text=True, timeout=300
        )
        assert "secret" not in done.stdout + done.stderr
        return done

    @property
    def summary(self):
        return (self.folder / "summary.md").read_text()

    @property
    def asked(self):
        path = self.folder / "asked.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture
def job(tmp_path):
    if shutil.which("bash") is None:
        pytest.skip("bash is not installed")
    for name in ("job", "repository"):
        (tmp_path / name).mkdir()
    return Job(tmp_path / "job", tmp_path / "repository")


@pytest.fixture
def gate(job):
    """A job whose gate says what the test says: (table, exit code, ...) -> how the step ended."""
    told = job.script("gate", GATE)
    return lambda table, code, **changed: job.predict(PYTHON=told, TABLE=table, GATE_CODE=str(code), **changed)


def test_the_yaml_is_an_action_and_hands_the_script_all_that_it_reads():
    yaml = pytest.importorskip("yaml")
    action = yaml.safe_load((ACTION / "action.yml").read_text())
    assert action["runs"]["using"] == "composite"
    steps = [step for step in action["runs"]["steps"] if "run" in step]
    assert all(step["shell"] == "bash" for step in steps)
    given = {name for step in steps for name in step["env"]}
    read = set(re.findall(r"\$\{?([A-Z_]+)\b", SCRIPT))
    by_github = {name for name in read if name.startswith(("GITHUB_", "RUNNER_"))}
    assert read - by_github - {"MARK", "PYTHON"} | {"GH_TOKEN"} == given
    used = {name for step in steps for name in re.findall(r"inputs\.([\w-]+)", json.dumps(step))}
    assert used | {"python-version"} == set(action["inputs"])
    assert all(one["description"] for one in action["inputs"].values())


def test_a_changed_kernel_is_priced_in_the_summary_and_in_a_comment(job):
    write_template(job.repository / "mine.cpp")
    (job.repository / "conftest.py").write_text("import what_the_project_needs\n")
    (job.repository / "pytest.ini").write_text("[pytest]\naddopts = --cov\nrequired_plugins = pytest-cov\n")
    git(job.repository, "init", "--quiet")
    git(job.repository, "add", "-A")
    git(job.repository, "commit", "--quiet", "-m", "base")
    base = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=job.repository, capture_output=True, text=True, check=True
    ).stdout.strip()
    event = {"pull_request": {"number": 7, "base": {"sha": base}}}
    (job.folder / "event.json").write_text(json.dumps(event))
    source = job.repository / "mine.cpp"
    source.write_text(source.read_text().replace("2.0f * x[i]", "2.0f * x[i] * x[i] * y[i]"))
    git(job.repository, "commit", "--quiet", "-a", "-m", "head")
    done = job.predict()
    assert done.returncode in (0, 1), done.stdout + done.stderr
    assert f"({base[:10]})" in job.summary
    assert "mine[large]" in job.summary
    look, post = job.asked
    assert look[:3] == ["api", "--paginate", "repos/me/mine/issues/7/comments"]
    assert post[2:5] == ["--method", "POST", "repos/me/mine/issues/7/comments"]
    assert post[-1].startswith("body=<!-- costmodel predict -->\n### costmodel gate: ")
    assert job.summary.strip() in post[-1]
    assert ("::error file=mine.cpp" in done.stdout) == (done.returncode == 1)


def test_an_earlier_comment_is_written_anew(gate, job):
    assert gate("| regressed |", 1, COMMENTS="41\n42\n").returncode == 1
    assert job.asked[-1][2:5] == ["--method", "PATCH", "repos/me/mine/issues/comments/41"]
    assert len(job.asked) == 2


def test_a_token_that_may_not_comment_fails_nothing(gate, job):
    done = gate("| ok |", 0, GH_CODE="1")
    assert done.returncode == 0
    assert "::notice" in done.stdout
    assert "| ok |" in job.summary


@pytest.mark.parametrize(
    ("table", "code", "changed", "ended", "asked"),
    [
        ("| regressed |", 1, {"FAIL": "false"}, 0, 2),
        ("| ok |", 0, {"COMMENT": "false"}, 0, 0),
        ("nothing to compare: no kernel changed", 0, {}, 0, 1),  # no news is no comment
        ("nothing to compare: no kernel changed", 0, {"COMMENTS": "41\n"}, 0, 2),  # unless there was news before
        ("", 4, {"FAIL": "false"}, 4, 0),
    ],
)
def test_what_is_told_and_how_the_step_ends(gate, job, table, code, changed, ended, asked):
    assert gate(table, code, **changed).returncode == ended
    assert len(job.asked) == asked
    assert table in job.summary


def test_a_push_has_no_comment_and_says_what_it_lacks(gate, job):
    (job.folder / "event.json").write_text("{}")
    assert gate("| ok |", 0).returncode == 0
    assert job.asked == []
