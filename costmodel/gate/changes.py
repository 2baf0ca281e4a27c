"""The predicted tier: which kernels changed since the base, and how probable it is that they are slower now.

Nothing is run; the model is passed in. Where it does not trust itself, `facts` says what is known without it.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np

from costmodel import workloads
from costmodel.gate import facts
from costmodel.gate.verdicts import Finding, Verdict
from costmodel.records import CostModel, Device, UserError, Variant, Workload


@dataclass(frozen=True, slots=True)
class Change:
    """A kernel whose text, default config or problems differ. `before` or `after` is None where `reason` says why."""

    name: str
    before: Workload | None
    after: Workload | None
    reason: str
    path: str
    line: int


class SlowdownModel(CostModel, Protocol):
    """A cost model that can compare two variants, so that what it gets wrong about both cancels."""

    def slowdowns(self, pairs: Sequence[tuple[Variant, Variant]], device: Device) -> np.ndarray:
        """(N, K): for each pair equally likely values of log2(latency of the second / of the first)."""
        ...


def changed_kernels(head: Path, base: Path, changed: Mapping[str, int]) -> list[Change]:
    """The kernels of our workload format among {changed file: line}, loaded from both trees; in the files' order.

    A whole tree and not the one file of the base, because a NAME.py may load what lies beside it.
    """
    found: dict[str, Change] = {}
    for file, line in changed.items():
        definition = _definition(head / file)
        if definition is None:
            continue
        path = definition.relative_to(head)
        after, error = _workloads(head / path)
        before, error_before = _workloads(base / path)
        for name, workload in after.items():
            old = before.get(name)
            if name in found or (old is not None and _same(old, workload)):
                continue
            reason = "" if old else f"base: {error_before or 'not there'}"
            found[name] = Change(name, old, workload, reason, file, line)
        if error:
            found[path.stem] = Change(path.stem, None, None, f"head: {error}", file, line)
    return list(found.values())


def _definition(file: Path) -> Path | None:
    """The NAME.py of a kernel that a changed file belongs to; other Python files are read and never executed."""
    path = file
    if file.suffix in workloads.SOURCE_SUFFIXES:
        path = file.with_name(file.stem.partition("__")[0] + ".py")
    if path.suffix != ".py" or not path.is_file():
        return None
    try:
        body = ast.parse(path.read_text()).body
    except (SyntaxError, UnicodeDecodeError):
        return None
    targets = [target for node in body if isinstance(node, ast.Assign) for target in node.targets]
    return path if any(isinstance(t, ast.Name) and t.id == "WORKLOAD" for t in targets) else None


def _workloads(path: Path) -> tuple[dict[str, Workload], str]:
    """What a NAME.py defines, its forms among them, by kernel name; or why it cannot be loaded."""
    if not path.is_file():
        return {}, "not there"
    try:
        module = workloads.load_module(path)
    except UserError as error:
        return {}, str(error)
    defined = [module.WORKLOAD, *getattr(module, "FORMS", {}).values()]
    return {workload.kernel.name: workload for workload in defined}, ""


def _same(before: Workload, after: Workload) -> bool:
    return (before.kernel.source, before.default, before.problems) == (
        after.kernel.source,
        after.default,
        after.problems,
    )


def predict(
    changes: Sequence[Change], model: SlowdownModel, device: Device, *, threshold: float, probable: float
) -> list[Finding]:
    """A finding for every changed kernel on every problem that both sides list, both with their default configs.

    regressed: the slow-down exceeds the threshold with at least the probability `probable`; ok: with at most
    1 - probable; inconclusive between, and where the model says that its answer is not to be trusted. Of those,
    regressed is what no longer compiles for the device or no longer fits it.
    """
    if not 0.5 < probable < 1:
        raise UserError(f"got probability {probable}, expected one between 0.5 and 1, such as 0.8")
    return [finding for change in changes for finding in _priced(change, model, device, threshold, probable)]


def _priced(change: Change, model: SlowdownModel, device: Device, threshold: float, probable: float) -> list[Finding]:
    pairs = _pairs(change)
    finding = partial(Finding, threshold=threshold, path=change.path, line=change.line)
    reason = change.reason or _misplaced(change, device) or ("" if pairs else "no problem is listed on both sides")
    if reason or change.before is None or change.after is None:
        return [finding(change.name, "not comparable", reason=reason)]
    told = model.predict([after for _, after in pairs.values()], device)
    drawn = model.slowdowns(list(pairs.values()), device)
    doubts = {
        name: prediction.reason
        for name, prediction, one in zip(pairs, told, drawn, strict=True)
        if not prediction.trust and one.any()  # where nothing differs the model reads one text: a comment changed
    }
    paths = change.before.path, change.after.path
    instead = dict(zip(doubts, facts.known([pairs[name] for name in doubts], paths, device), strict=True))
    findings = []
    for name, one in zip(pairs, drawn, strict=True):
        probability = float(np.mean(one > math.log2(1 + threshold)))
        verdict: Verdict = "inconclusive"
        if name not in doubts and not 1 - probable < probability < probable:
            verdict = "regressed" if probability >= probable else "ok"
        if name in doubts and instead[name].broken:
            findings.append(finding(f"{change.name}[{name}]", "regressed", reason=instead[name].told))
            continue
        doubt = f"{doubts[name]}; {instead[name].told}" if name in doubts else ""
        slow, low, high = (2.0 ** float(q) - 1 for q in np.quantile(one, (0.5, 0.05, 0.95)))
        numbers = {"slowdown": slow, "low": low, "high": high, "probability": probability}
        findings.append(finding(f"{change.name}[{name}]", verdict, reason=doubt, **numbers))
    return findings


def _misplaced(change: Change, device: Device) -> str:
    language = change.after.kernel.language if change.after else ""
    if not language or (language == "cpp") == (device.kind == "cpu"):
        return ""
    return f"a {language} kernel does not run on {device.name}; give --costmodel-device"


def _pairs(change: Change) -> dict[str, tuple[Variant, Variant]]:
    """Base and head on every problem that both list alike, by its name."""
    before, after = change.before, change.after
    if not before or not after:
        return {}
    return {
        name: (Variant(before.kernel, problem, before.default), Variant(after.kernel, problem, after.default))
        for name, problem in after.problems.items()
        if before.problems.get(name) == problem
    }
