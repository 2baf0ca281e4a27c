"""Runs a selection of tests on two checkouts of a repository, in a process each, and reads what they found.

The two live at once and take turns (`costmodel.measure.turns`), or run one after the other. A process is pytest under
the same interpreter and environment; every folder of this process's import path that lies in the repository is put
first, as the checkout has it, so that an editable installation does not lead both sides to one text. The process
reports which files it loaded, and a base that loaded the head's is no base.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from costmodel import reading
from costmodel.measure.turns import BENCHMARK_TIMER
from costmodel.records import UserError

REQUEST, RECORD, OUTPUT, ERRORS = "tests.json", "record.json", "output", "errors"
NOT_THERE = "not there"
# As `side.time_call` has them: seconds a test, and seconds a sample, which make the clock's own cost no matter.
BUDGET = ("--benchmark-max-time=0.1", "--benchmark-min-time=0.0004")
# What the tests' own plugins must not do to a measurement.
QUIETED = {"xdist": ("-n0",), "pytest_cov": ("--no-cov",)}


@dataclass(frozen=True, slots=True)
class Record:
    """What one process found: microseconds a test (`side.low_us`), why others have none, and where it ran.

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
    timer: bool = False  # whether it has been given a clock, which is then kept
    changed: tuple[str, ...] = ()  # files that differ between the sides


def run(project: Project, trees: Sequence[Path], tests: Sequence[str], *, together: bool) -> list[Record]:
    """Measure the tests (pytest's ids) once on each of two checkouts, in this order: by turns where `together`, and
    otherwise one after the other."""
    if not together:
        return [record for tree in trees for record in _measure(project, [tree], tests, [None])]
    first, second = ends = socket.socketpair()
    with first, second:
        return _measure(project, trees, tests, ends)


def _measure(
    project: Project, trees: Sequence[Path], tests: Sequence[str], ends: Sequence[socket.socket | None]
) -> list[Record]:
    """What one process each found, of which all live at once and the first has the first turn."""
    with ExitStack() as stack:
        started = []
        for number, (tree, end) in enumerate(zip(trees, ends, strict=True)):
            place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="costmodel-side-")))
            process = _start(project, tree, place, tests, end, first=number == 0)
            if end:
                end.close()  # it is the process's alone, so that the other side learns of its end
            if process:
                stack.callback(process.wait)
                stack.callback(process.kill)  # no more than a formality, unless this one is interrupted
            started.append((process, place, tree))
        return [_found(*one, tests) for one in started]


def _start(
    project: Project, tree: Path, place: Path, tests: Sequence[str], end: socket.socket | None, *, first: bool
) -> subprocess.Popen[bytes] | None:
    """Nothing where the checkout has none of the tests' files."""
    files = dict.fromkeys(test.partition("::")[0] for test in tests)
    present = [str(tree / project.rootdir / file) for file in files if (tree / project.rootdir / file).exists()]
    if not present:
        return None
    foreign = "" if tree == project.head else str(project.head)  # whence it must load nothing
    seat = {"connection": end.fileno(), "first": first} if end else None
    request = {"tests": list(tests), "tree": str(tree), "foreign": foreign, "changed": project.changed, "seat": seat}
    (place / REQUEST).write_text(json.dumps(request))
    with (place / OUTPUT).open("wb") as output, (place / ERRORS).open("wb") as errors:
        return subprocess.Popen(
            [*_command(project, tree, place), *present],
            cwd=tree / project.folder if (tree / project.folder).is_dir() else tree,
            env=_environment(project, tree),
            stdout=output,
            stderr=errors,
            pass_fds=[end.fileno()] if end else [],
        )


def _found(process: subprocess.Popen[bytes] | None, place: Path, tree: Path, tests: Sequence[str]) -> Record:
    if process is None:
        return Record(failed=dict.fromkeys(tests, NOT_THERE))
    code = process.wait()
    if not (place / RECORD).is_file():
        told = "".join((place / name).read_text(errors="replace") for name in (OUTPUT, ERRORS))
        return Record(error=f"pytest ended with exit code {code}: {reason(told)}")
    return _read(place, tree, tests)


def _command(project: Project, tree: Path, place: Path) -> list[str]:
    command = [sys.executable, "-P", "-m", "pytest", f"--rootdir={tree / project.rootdir}", f"--costmodel-side={place}"]
    for name in project.plugins:
        command += ["-p", name]
    # A project that stops at its first failure must not lose the tests after one that is taken again.
    command += ["-p", "no:cacheprovider", "--maxfail=0", *project.options]
    if project.benchmark:
        command += ["--benchmark-enable", f"--benchmark-json={place / 'benchmarks.json'}"]
        command += [f"--benchmark-storage={place / 'storage'}", *BUDGET]
    if project.benchmark and not project.timer:
        command += [f"--benchmark-timer={BENCHMARK_TIMER}"]
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
    failed = {test: told["failed"].get(test, NOT_THERE) for test in tests if test not in us}
    return Record(us, failed, told["fingerprint"], tuple(str(Path(file).relative_to(tree)) for file in told["files"]))


def reason(text: str) -> str:
    """The line that says what went wrong: pytest's first one marked E, else the last."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line[1:].strip() for line in lines if line.startswith("E ")]
    return errors[0] if errors else lines[-1] if lines else "no message"
