"""A pytest session under the gate: what the plugin registers where --costmodel-gate is given, and not before."""

from __future__ import annotations

import json
import math
import os
import shlex
import subprocess
import sys
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from costmodel import devices
from costmodel.gate import changes, telling, verdicts
from costmodel.gate.verdicts import Finding
from costmodel.measure import pairs, revisions
from costmodel.records import UserError

PLUGIN = "costmodel.pytest_plugin"
ENDED = (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.NO_TESTS_COLLECTED)
TIMED = ("latency", "benchmark")  # fixtures of the tests that the measured tier takes


def setting(config: pytest.Config, name: str) -> str:
    """An option of the plugin, or else the ini key of its name."""
    given = config.getoption(f"--costmodel-{name}")
    return str(config.getini(f"costmodel_{name.replace('-', '_')}") if given is None else given)


@contextmanager
def _usage_errors() -> Iterator[None]:
    """A user's mistake is one line and pytest's exit code 4."""
    try:
        yield
    except UserError as error:
        raise pytest.UsageError(str(error)) from None


def _whole(config: pytest.Config, name: str) -> int:
    text = setting(config, name)
    if not text.isdigit():
        raise UserError(f"got --costmodel-{name}={text}, expected a whole number")
    return int(text)


class Gate:
    """What both tiers share: the base, and how findings are told."""

    nothing = "nothing to compare"  # said where there are no findings

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.findings: dict[str, Finding] = {}

    def pytest_sessionstart(self, session: pytest.Session) -> None:
        """Mistakes in what was typed are told before anything is collected."""
        with _usage_errors():
            self.prepare()

    def prepare(self) -> None:
        threshold, alpha = (verdicts.share(setting(self.config, name)) for name in ("threshold", "alpha"))
        few, most = (_whole(self.config, name) for name in ("pairs", "max-pairs"))
        self.rule = verdicts.Rule(threshold, alpha, few, most)
        on_github = os.environ.get("GITHUB_BASE_REF")
        wanted = setting(self.config, "base") or (f"origin/{on_github}" if on_github else "")
        if not wanted:
            raise UserError("--costmodel-gate needs to know what to compare with; give --costmodel-base=REV")
        self.root = revisions.toplevel(self.config.invocation_params.dir)
        self.base = revisions.fork_point(self.root, wanted)
        self.changed = revisions.changed_lines(self.root, self.base)
        self.title = f"costmodel gate: this checkout against {wanted} ({self.base[:10]})"

    def told(self, item: pytest.Item) -> str:
        """Writes the finding of a test into its JUnit properties; the message to fail with, or nothing."""
        finding = self.findings.get(item.nodeid)
        if finding is None:
            return ""
        item.user_properties.append(("costmodel_verdict", finding.verdict))
        for name in ("slowdown", "p", "probability"):
            value = getattr(finding, name)
            if value is not None and math.isfinite(value):
                item.user_properties.append((f"costmodel_{name}", round(value, 6)))
        return finding.sentence if finding.verdict == "regressed" else ""

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> Generator[None, None, None]:
        """Files come after what the terminal tells, so that one that cannot be written hides no finding."""
        yield
        if exitstatus in ENDED and not self.config.getoption("collectonly"):
            try:
                self.write(list(self.findings.values()))
            except (OSError, UserError) as error:
                raise pytest.UsageError(str(error)) from None

    def write(self, findings: Sequence[Finding]) -> None:
        """The files that were asked for."""
        if target := setting(self.config, "markdown") or os.environ.get("GITHUB_STEP_SUMMARY"):
            with Path(target).open("a") as file:
                file.write(telling.markdown(findings, self.title, self.nothing))
        if target := setting(self.config, "html"):
            from costmodel import report

            report.write_html(report.gate_html(findings, title=self.title), Path(target))

    def pytest_terminal_summary(self, terminalreporter: Any, exitstatus: int) -> None:
        if exitstatus not in ENDED:
            return
        findings = list(self.findings.values())
        terminalreporter.ensure_newline()
        terminalreporter.section(self.title)
        for line in telling.table(findings) if findings else [self.nothing]:
            terminalreporter.write_line(line)
        if os.environ.get("GITHUB_ACTIONS") == "true":
            for line in telling.github_commands(findings):
                terminalreporter.write_line(line)


class Measured(Gate):
    """Runs pairs of processes before the tests; a test that has regressed fails where it ran."""

    nothing = f"nothing to compare: no test uses {' or '.join(TIMED)}"

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> None:
        fixtures = {item: getattr(item, "fixturenames", ()) for item in session.items}
        timed = [item for item, names in fixtures.items() if set(TIMED) & set(names)]
        if timed and not session.testsfailed and not self.config.getoption("collectonly"):
            with _usage_errors():
                self.measure(timed)

    def measure(self, items: Sequence[pytest.Item]) -> None:
        thresholds = {item.nodeid: self.rule.threshold for item in items}
        for item in items:
            if marker := item.get_closest_marker("costmodel_gate"):
                thresholds[item.nodeid] = verdicts.share(str(marker.kwargs.get("threshold", self.rule.threshold)))
        project = self.project()
        records: list[pairs.Record] = []
        reporter = self.config.pluginmanager.get_plugin("terminalreporter")

        def progress(pair: int, tests: int) -> None:
            if reporter is not None and self.config.getoption("verbose") >= 0:
                reporter.write_line(f"costmodel gate: pair {pair} of at most {self.rule.max_pairs}, {tests} tests")

        with revisions.checkout(self.root, self.base) as tree:
            self.build(tree)
            trees = {"base": tree, "head": self.root}

            def run(order: Sequence[verdicts.Side], tests: Sequence[str], together: bool) -> verdicts.Records:
                found = pairs.run(project, [trees[side] for side in order], tests, together=together)
                records.extend(found)
                return dict(zip(order, found, strict=True))

            found = verdicts.measure(
                run, list(thresholds), self.rule, thresholds=thresholds, seed=int(self.base[:8], 16), progress=progress
            )
        self.fingerprint = next((record.fingerprint for record in records if record.fingerprint), {})
        loaded = {file for record in records for file in record.files}
        for item in items:
            path, line = self.place(item, loaded)
            self.findings[item.nodeid] = replace(found[item.nodeid], path=path, line=line)

    def project(self) -> pairs.Project:
        manager = self.config.pluginmanager
        options = shlex.split(setting(self.config, "args"))
        plugins = [str(manager.get_name(sys.modules[PLUGIN]))]
        if benchmark := manager.hasplugin("benchmark"):
            plugins.append("benchmark")  # by name, in case that plugins are not loaded by themselves
        for name, quieting in pairs.QUIETED.items():
            options += quieting if manager.hasplugin(name) else ()
        folder = self.config.invocation_params.dir.resolve()
        rootdir = self.config.rootpath.resolve()
        if not rootdir.is_relative_to(self.root):
            raise pytest.UsageError(
                f"pytest's rootdir {rootdir} lies outside the repository {self.root}; add a pytest.ini"
            )
        return pairs.Project(
            head=self.root,
            rootdir=rootdir.relative_to(self.root),
            folder=folder.relative_to(self.root),
            plugins=tuple(plugins),
            options=tuple(options),
            benchmark=benchmark,
            timer=benchmark and not self.config.getoption("benchmark_timer").endswith("perf_counter"),
            changed=tuple(self.changed),
        )

    def build(self, tree: Path) -> None:
        command = setting(self.config, "build")
        if not command:
            return
        done = subprocess.run(command, shell=True, cwd=tree, capture_output=True, text=True)
        if done.returncode:
            told = pairs.reason(done.stdout + "\n" + done.stderr)
            raise pytest.UsageError(f"--costmodel-build ended with exit code {done.returncode} on the base: {told}")

    def place(self, item: pytest.Item, loaded: set[str]) -> tuple[str, int]:
        """The first changed line of a loaded file that is not the test's own; else the test."""
        path, line, _ = item.reportinfo()
        own = Path(path).resolve()
        own_file = str(own.relative_to(self.root)) if own.is_relative_to(self.root) else str(own)
        suspects = [file for file in self.changed if file in loaded and file != own_file]
        return (suspects[0], self.changed[suspects[0]]) if suspects else (own_file, (line or 0) + 1)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, None, None]:
        message = self.told(item)
        yield
        if message:
            pytest.fail(message, pytrace=False)

    def write(self, findings: Sequence[Finding]) -> None:
        super().write(findings)
        target = setting(self.config, "json")
        if not target or not findings:
            return
        folder = Path(target)
        folder.mkdir(parents=True, exist_ok=True)
        now = datetime.now(UTC).isoformat()
        commits = (self.base, revisions.head(self.root))
        for side, commit in zip(verdicts.SIDES, commits, strict=True):
            document = telling.benchmark_json(findings, side, machine=self.fingerprint, commit=commit, now=now)
            (folder / f"{side}.json").write_text(json.dumps(document, indent=1))

    @pytest.hookimpl(optionalhook=True)
    def pytest_benchmark_update_json(self, output_json: dict[str, Any]) -> None:
        """What pytest-benchmark saves of this run also tells what the gate found."""
        for bench in output_json["benchmarks"]:
            if finding := self.findings.get(bench["fullname"]):
                bench["extra_info"]["costmodel"] = telling.extra(finding)


class Predicted(Gate):
    """Collects the kernels that changed instead of tests."""

    nothing = "nothing to compare: no kernel changed"

    def pytest_collection(self, session: pytest.Session) -> bool:
        with _usage_errors():
            findings = self.price()
        items = [
            ChangedKernel.from_parent(session, name=f.name, nodeid=f"{f.path}::{f.name}", finding=f) for f in findings
        ]
        report = pytest.CollectReport("costmodel", "passed", None, [*items])
        self.config.hook.pytest_collectreport(report=report)
        self.config.hook.pytest_collection_modifyitems(session=session, config=self.config, items=items)
        self.findings = {item.nodeid: item.finding for item in items}  # those that -k and -m leave
        session.items, session.testscollected = [*items], len(items)
        self.config.hook.pytest_collection_finish(session=session)
        return True

    def price(self) -> list[Finding]:
        device = devices.find(name) if (name := setting(self.config, "device")) else devices.detect()
        probable = verdicts.share(setting(self.config, "probability"))
        with revisions.checkout(self.root, self.base) as tree:
            changed = changes.changed_kernels(self.root, tree, self.changed)
            if not changed:
                return []
            from costmodel.predictor import NeuralCostModel

            model = NeuralCostModel.from_pretrained(setting(self.config, "model") or None)
            return changes.predict(changed, model, device, threshold=self.rule.threshold, probable=probable)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> Generator[None, None, None]:
        yield from super().pytest_sessionfinish(session, exitstatus)
        if not self.findings and session.exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED:
            session.exitstatus = pytest.ExitCode.OK  # no kernel changed, which is what one hopes for


class ChangedKernel(pytest.Item):
    """A changed kernel on one problem; it fails where the model says that it has become slower."""

    def __init__(self, *, finding: Finding, **keywords: Any) -> None:
        super().__init__(**keywords)
        self.finding = finding

    def runtest(self) -> None:
        gate = self.config.pluginmanager.get_plugin("costmodel-gate")
        if gate is not None and (message := gate.told(self)):
            pytest.fail(message, pytrace=False)

    def reportinfo(self) -> tuple[Path, int, str]:
        return self.config.rootpath / self.finding.path, self.finding.line - 1, self.name
