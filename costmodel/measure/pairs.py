"""Runs a selection of tests in a process of its own, on one of two checkouts of a repository, and reads what it found.

The process is pytest under the same interpreter and environment; every folder of this process's import path that lies
in the repository is put first, as the checkout has it, so that an editable installation does not lead both sides to
one text. The process reports which files it loaded, and a base that loaded the head's is no base.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from costmodel import reading
from costmodel.records import UserError

REQUEST, RECORD = "tests.json", "record.json"
# What the tests' own plugins must not do to a measurement.
QUIETED = {"xdist": ("-n0",), "pytest_cov": ("--no-cov",)}


@dataclass(frozen=True, slots=True)
class Record:
    """What one process found: microseconds a test (the smallest sample), why others have none, and where it ran.

    `error` says why nothing in it counts; `files` are the loaded ones of the checkout, relative to it.
    """

    us: dict[str, float] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    fingerprint: dict[str, str] = field(default_factory=dict)
    files: tuple[str, ...] = ()
    error: str = ""


@dataclass(frozen=True, slots=True)
class Project:
    """How pytest is started on a checkout. Folders are relative to the repository's root, `head`."""

    head: Path
    rootdir: Path  # pytest's, from which its test ids count
    folder: Path  # where pytest was called
    plugins: tuple[str, ...]  # names of plugins as pytest takes them with -p
    options: tuple[str, ...] = ()  # further options of the tests
    benchmark: bool = False  # whether pytest-benchmark is there
    changed: tuple[str, ...] = ()  # files that differ between the sides


def run(project: Project, tree: Path, tests: Sequence[str]) -> Record:
    """Measure the tests (pytest's ids) once on the checkout at `tree`."""
    with tempfile.TemporaryDirectory(prefix="costmodel-side-") as scratch:
        place = Path(scratch)
        foreign = "" if tree == project.head else str(project.head)  # whence it must load nothing
        request = {"tests": list(tests), "tree": str(tree), "foreign": foreign, "changed": project.changed}
        (place / REQUEST).write_text(json.dumps(request))
        files = dict.fromkeys(test.partition("::")[0] for test in tests)
        present = [str(tree / project.rootdir / file) for file in files if (tree / project.rootdir / file).exists()]
        if not present:
            return Record(failed=dict.fromkeys(tests, "not there"))
        done = subprocess.run(
            [*_command(project, tree, place), *present],
            cwd=tree / project.folder if (tree / project.folder).is_dir() else tree,
            env=_environment(project, tree),
            capture_output=True,
            text=True,
            errors="replace",
        )
        if not (place / RECORD).is_file():
            return Record(error=f"pytest ended with exit code {done.returncode}: {reason(done.stdout + done.stderr)}")
        return _read(place, tree, tests)


def _command(project: Project, tree: Path, place: Path) -> list[str]:
    command = [sys.executable, "-P", "-m", "pytest", f"--rootdir={tree / project.rootdir}", f"--costmodel-side={place}"]
    for name in project.plugins:
        command += ["-p", name]
    command += ["-p", "no:cacheprovider", *project.options]
    if project.benchmark:
        command += ["--benchmark-enable", f"--benchmark-json={place / 'benchmarks.json'}"]
        command += [f"--benchmark-storage={place / 'storage'}", "--benchmark-max-time=0.1"]
    return command


def _environment(project: Project, tree: Path) -> dict[str, str]:
    inside = [Path(entry or ".").resolve() for entry in sys.path]
    mapped = [tree / path.relative_to(project.head) for path in inside if path.is_relative_to(project.head)]
    given = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    outside = [entry for entry in given if not Path(entry).resolve().is_relative_to(project.head)]
    first = [str(path) for path in mapped if path.is_dir() and "site-packages" not in path.parts]
    return os.environ | {"PYTHONPATH": os.pathsep.join([*dict.fromkeys(first), *outside])}


def _read(place: Path, tree: Path, tests: Sequence[str]) -> Record:
    try:
        return _record(reading.json_object(place / RECORD, expected="what a process found"), tree, tests)
    except (UserError, AttributeError, KeyError, TypeError, ValueError) as error:  # the tests could have written it
        return Record(error=f"its record cannot be read: {error}")


def _record(told: dict[str, Any], tree: Path, tests: Sequence[str]) -> Record:
    if strayed := told["strayed"]:
        return Record(error=f"it imported {strayed[0]} of the head, whatever PYTHONPATH says")
    if copies := told["copies"]:
        return Record(error=f"it imported {copies[0]}, a copy; install the package with `pip install -e`")
    us = {test: told["us"][test] for test in tests if test in told["us"] and test not in told["failed"]}
    failed = {test: told["failed"].get(test, "not there") for test in tests if test not in us}
    return Record(us, failed, told["fingerprint"], tuple(str(Path(file).relative_to(tree)) for file in told["files"]))


def reason(text: str) -> str:
    """The line that says what went wrong: pytest's first one marked E, else the last."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line[1:].strip() for line in lines if line.startswith("E ")]
    return errors[0] if errors else lines[-1] if lines else "no message"
