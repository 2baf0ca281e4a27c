"""The gate against slow-downs as a pytest plugin.

    pytest --costmodel-gate=measure --costmodel-base=origin/main          # tests with `latency` or `benchmark`, timed
    pytest --costmodel-gate=predict --costmodel-base=origin/main          # changed kernels, priced; no test is run

    def test_parse(latency):
        latency(parse, TEXT)                                              # returns what parse returns

A regression is a failed test, so exit codes, -x, --lf and JUnit are pytest's own. Every option has an ini key
(`costmodel_base` for `--costmodel-base`). This module loads with every pytest run: what costs time is imported inside.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest

# name, what it takes, default, help
SETTINGS = (
    ("base", "REV", "", "the revision to compare with, from where HEAD left it; a pull request's base on GitHub"),
    ("threshold", "SHARE", "5%", "the slow-down that a regression exceeds; the marker costmodel_gate overrules it"),
    ("alpha", "SHARE", "5%", "measure: the chance of any false alarm that a run may take"),
    ("pairs", "N", "6", "measure: pairs of processes before the first verdict, and between further ones"),
    ("max-pairs", "N", "18", "measure: pairs of processes after which an undecided test stays so"),
    ("build", "COMMAND", "", "measure: run in the base's folder first, where it needs building"),
    ("args", "OPTIONS", "", "measure: pytest options for the processes that are timed"),
    ("device", "NAME", "", "predict: the device to price for, see `costmodel devices`; this machine's if left out"),
    ("model", "FOLDER", "", "predict: a model folder; the shipped model if left out"),
    ("probability", "SHARE", "80%", "predict: how probable a slow-down beyond the threshold must be to fail"),
    ("markdown", "FILE", "", "append the table to it as Markdown; $GITHUB_STEP_SUMMARY if left out"),
    ("html", "FILE", "", "write a page with every finding and its pairs, which opens offline"),
    ("json", "FOLDER", "", "measure: write base.json and head.json, which `pytest-benchmark compare` reads"),
)
MARKER = "costmodel_gate(threshold): the slow-down that a regression of this test exceeds, such as '3%'"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("costmodel", "costmodel's gate against slow-downs")
    group.addoption("--costmodel-gate", choices=("measure", "predict"), help="compare this checkout with its base")
    group.addoption("--costmodel-side", metavar="FOLDER", help=argparse.SUPPRESS)
    for name, takes, default, told in SETTINGS:
        option = told + (f" (default: {default})" if default else "")
        group.addoption(f"--costmodel-{name}", metavar=takes, help=option.replace("%", "%%"))
        parser.addini(f"costmodel_{name.replace('-', '_')}", told, default=default)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", MARKER)
    tier = config.getoption("--costmodel-gate")
    if side := config.getoption("--costmodel-side"):
        config.pluginmanager.register(OneSide(Path(side)), "costmodel-side")
    elif tier and not hasattr(config, "workerinput"):
        if config.getoption("dist", "no") != "no":
            raise pytest.UsageError("--costmodel-gate runs in one process; add -n0 to run it without pytest-xdist")
        from costmodel.gate import session

        gate = session.Measured(config) if tier == "measure" else session.Predicted(config)
        config.pluginmanager.register(gate, "costmodel-gate")


@pytest.fixture
def latency(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """latency(f, *args, **kwargs): calls f and returns what it returns; the gate's processes time it, other runs do
    not. Once a test."""
    side = request.config.pluginmanager.get_plugin("costmodel-side")
    calls: list[Callable[..., Any]] = []

    def measure(f: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if calls:
            pytest.fail("latency was called twice; a test has one latency, so parametrize it or write two")
        calls.append(f)
        if side is not None:
            side.time(request.node.nodeid, lambda: f(*args, **kwargs))
        return f(*args, **kwargs)

    return measure


# ---- one of the processes that are timed ----


class OneSide:
    """Runs the tests that it is asked for and no others, and writes down what it found."""

    def __init__(self, place: Path) -> None:
        from costmodel.measure import turns
        from costmodel.measure.pairs import REQUEST

        self.place = place
        self.request = json.loads((place / REQUEST).read_text())
        self.tests = {test: number for number, test in enumerate(self.request["tests"])}
        self.turns: turns.Turns | None = None
        if seat := self.request["seat"]:
            connection = socket.socket(fileno=seat["connection"])
            connection.set_inheritable(False)
            os.register_at_fork(after_in_child=connection.close)  # else a child would outlive this side unnoticed
            self.turns = turns.join(connection, first=seat["first"])
        self.us: dict[str, float] = {}
        self.failed: dict[str, str] = {}

    def time(self, test: str, call: Callable[[], Any]) -> None:
        from costmodel.measure import side

        self.us[test] = side.low_us(side.time_call(call))

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        config.hook.pytest_deselected(items=[item for item in items if item.nodeid not in self.tests])
        wanted = [item for item in items if item.nodeid in self.tests]
        items[:] = sorted(wanted, key=lambda item: self.tests[item.nodeid])  # one order on both sides

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, object, object]:
        number = self.tests.get(item.nodeid)
        if self.turns is None or number is None:
            return (yield)
        self.turns.enter(number)
        try:
            return (yield)
        finally:
            self.turns.leave()
            if self.turns.gave_up:
                self.failed[item.nodeid] = "the other side kept it waiting too long"

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        from costmodel.measure.pairs import reason

        if report.failed:
            told = reason(report.longreprtext)
            self.failed |= {test: told for test in self.tests if test.startswith(report.nodeid)}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        from costmodel.measure.pairs import reason

        if not report.passed:
            told = report.longrepr[2] if isinstance(report.longrepr, tuple) else reason(report.longreprtext)
            self.failed[report.nodeid] = f"{report.outcome}: {told}"

    @pytest.hookimpl(optionalhook=True)
    def pytest_benchmark_update_json(self, output_json: dict[str, Any]) -> None:
        from costmodel.measure.side import low_us

        self.us |= {bench["fullname"]: 1e6 * low_us(bench["stats"]["data"]) for bench in output_json["benchmarks"]}

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self) -> None:  # after pytest-benchmark's, which calls the hook above
        from costmodel.measure import side
        from costmodel.measure.pairs import RECORD

        foreign = self.request["foreign"]
        record = {
            "us": self.us,
            "failed": self.failed,
            "fingerprint": side.fingerprint(),
            "files": side.loaded_files(Path(self.request["tree"])),
            "strayed": side.loaded_files(Path(foreign)) if foreign else [],
            "copies": side.installed_copies(self.request["changed"]),
        }
        (self.place / RECORD).write_text(json.dumps(record))
