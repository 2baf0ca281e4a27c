"""How often the gate cries wolf, and how often it sees one: suites with and without a slow-down, on this machine.

    python benchmarks/gate.py --out runs/gate.jsonl        # hours; run again after a kill, it goes on where it was
    python benchmarks/gate.py --minutes 25                 # as many suites of every kind as that allows
    python benchmarks/gate.py --quick                      # minutes, too few suites for a figure

Every suite is a scratch repository of two commits whose tests time Python loops of 1 to 4 ms with pytest-benchmark's
fixture. The gate is called as a user calls it. Beside it, on the same commits and right after, what people use today:
`--benchmark-compare-fail`, two runs with pytest-benchmark's defaults (a second a test), judged by its own check on the
mean and on the minimum.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import binomtest

PLUGINS = ("-p", "benchmark", "-p", "costmodel.pytest_plugin", "-p", "no:cacheprovider")
BRANCH = "main"
WORK = """
def spin(count):
    total = 0
    for i in range(count):
        total += i * i % 7
    return total
"""


@dataclass(frozen=True)
class Arm:
    name: str
    tests: int
    slowdown: float  # of every test
    threshold: float
    suites: int


ARMS = (
    Arm("no change, 1 test", tests=1, slowdown=0.0, threshold=0.05, suites=200),
    Arm("no change, 10 tests", tests=10, slowdown=0.0, threshold=0.05, suites=100),
    Arm("+10 %, threshold 5 %", tests=1, slowdown=0.10, threshold=0.05, suites=100),
    Arm("+5 %, threshold 2 %", tests=1, slowdown=0.05, threshold=0.02, suites=100),
)
QUICK = tuple(Arm(a.name, a.tests, a.slowdown, a.threshold, suites=2 if a.tests == 1 else 1) for a in ARMS)


def repository(folder: Path, arm: Arm) -> None:
    """Two commits: the second has every loop longer by arm.slowdown, or changes a remark."""
    counts = [20_000 * (1 + i % 4) for i in range(arm.tests)]
    for slowdown in (0.0, arm.slowdown):
        bodies = [f"def work{i}():\n    return spin({round(c * (1 + slowdown))})\n" for i, c in enumerate(counts)]
        (folder / "work.py").write_text("\n\n".join([WORK, *bodies]))
        tests = [f"def test_{i}(benchmark):\n    benchmark(work.work{i})\n" for i in range(arm.tests)]
        (folder / "test_work.py").write_text("\n\n".join(["import work\n", *tests]))
        (folder / "remark.txt").write_text(f"{time.time_ns()}\n")
        if not (folder / ".git").exists():
            git(folder, "init", "--quiet", f"--initial-branch={BRANCH}")
        git(folder, "add", "-A")
        git(folder, "commit", "--quiet", "-m", "step")


def git(folder: Path, *arguments: str) -> None:
    identity = ("-c", "user.name=benchmark", "-c", "user.email=benchmark@localhost", "-c", "commit.gpgsign=false")
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True)


def pytest(folder: Path, *arguments: str) -> None:
    """Exit codes 0 and 1 are answers."""
    environment = {n: v for n, v in os.environ.items() if not n.startswith("GITHUB_")}
    environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    command = [sys.executable, "-P", "-m", "pytest", "-q", *PLUGINS, *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode not in (0, 1):
        raise SystemExit(f"pytest ended with exit code {done.returncode}:\n{done.stdout}\n{done.stderr}")


def run_gate(folder: Path, arm: Arm) -> dict:
    start = time.monotonic()
    pytest(
        folder, "--costmodel-gate=measure", "--costmodel-base=HEAD~1", f"--costmodel-threshold={arm.threshold}",
        "--costmodel-json=found", "--benchmark-disable",
    )  # fmt: skip
    wall_s = time.monotonic() - start
    found = [b["extra_info"]["costmodel"] for b in json.loads((folder / "found/head.json").read_text())["benchmarks"]]
    if len(found) != arm.tests:
        raise SystemExit(f"got {len(found)} findings of {arm.tests} tests; the rest was not comparable")
    return {
        "verdicts": [one["verdict"] for one in found],
        "pairs": [len(one["pairs_us"]) for one in found],
        "slowdowns": [one["slowdown"] for one in found],
        "wall_s": round(wall_s, 1),
    }


def run_peer(folder: Path, arm: Arm) -> dict:
    """Which tests pytest-benchmark fails, base first and then head, by its mean and by its minimum."""
    from pytest_benchmark.utils import PercentageRegressionCheck

    start = time.monotonic()
    saved = []
    for revision in (f"{BRANCH}~1", BRANCH):  # not HEAD, which the first checkout moves
        git(folder, "checkout", "--quiet", "--detach", revision)
        pytest(folder, "--benchmark-json=peer.json")
        saved.append({b["fullname"]: b["stats"] for b in json.loads((folder / "peer.json").read_text())["benchmarks"]})
    wall_s = time.monotonic() - start

    def fails(field: str) -> list[bool]:
        check = PercentageRegressionCheck(field, 100 * arm.threshold)
        return [bool(check.fails(head, saved[0][name])) for name, head in saved[1].items()]

    return {"mean": fails("mean"), "min": fails("min"), "wall_s": round(wall_s, 1)}


def finished(path: Path) -> list[dict]:
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines]


def table(rows: list[dict], arms: tuple[Arm, ...]) -> pd.DataFrame:
    """Shares with their 95 % Wilson intervals; a suite counts where any of its tests is flagged."""
    lines = []
    for arm in arms:
        mine = [row for row in rows if row["arm"] == arm.name]
        if not mine:
            continue
        rules = {
            "costmodel": [[v == "regressed" for v in row["gate"]["verdicts"]] for row in mine],
            f"mean:{100 * arm.threshold:g}%": [row["peer"]["mean"] for row in mine],
            f"min:{100 * arm.threshold:g}%": [row["peer"]["min"] for row in mine],
        }
        verdicts = [v for row in mine for v in row["gate"]["verdicts"]]
        for rule, flags in rules.items():
            ours = rule == "costmodel"
            lines.append(
                {
                    "arm": arm.name,
                    "rule": rule,
                    "suites flagged": shown([any(suite) for suite in flags]),
                    "tests flagged": shown([flag for suite in flags for flag in suite]),
                    "inconclusive": f"{verdicts.count('inconclusive')}/{len(verdicts)}" if ours else "",
                    "pairs": f"{np.mean([p for row in mine for p in row['gate']['pairs']]):.1f}" if ours else "1",
                    "wall s": f"{np.median([row['gate' if ours else 'peer']['wall_s'] for row in mine]):.0f}",
                }
            )
    return pd.DataFrame(lines)


def shown(flags: list[bool]) -> str:
    low, high = binomtest(sum(flags), len(flags)).proportion_ci(method="wilson")
    return f"{sum(flags)}/{len(flags)} = {np.mean(flags):.1%} ({low:.1%} .. {high:.1%})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/gate.jsonl"), help="a line is added for every suite")
    parser.add_argument("--minutes", type=float, default=np.inf, help="begin no round of suites after this many")
    parser.add_argument("--quick", action="store_true", help="one or two suites of each kind")
    options = parser.parse_args()
    arms = QUICK if options.quick else ARMS
    options.out.parent.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + 60 * options.minutes
    for number in range(max(arm.suites for arm in arms)):  # the arms take turns, so that all meet the same hours
        if time.monotonic() > end:
            break
        for arm in arms:
            done = {(row["arm"], row["number"]) for row in finished(options.out)}
            if number >= arm.suites or (arm.name, number) in done:
                continue
            with tempfile.TemporaryDirectory() as scratch:
                folder = Path(scratch)
                repository(folder, arm)
                row = {"arm": arm.name, "number": number, "load": os.getloadavg()[0]}
                row |= {"gate": run_gate(folder, arm), "peer": run_peer(folder, arm)}
            with options.out.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(arm.name, number, row["gate"]["verdicts"], row["gate"]["pairs"], flush=True)
    rows = finished(options.out)
    with pd.option_context("display.width", 200, "display.max_columns", 20, "display.max_colwidth", 60):
        print(table(rows, arms).to_string(index=False))
    print(f"{len(rows)} suites, load {np.median([row['load'] for row in rows]):.1f} (median)")


if __name__ == "__main__":
    main()
