"""The pages: of what was measured, of a search, of a gate. Their figures, what strangers write in names, their look."""

import dataclasses
import html
import itertools
import json
import math
import re
import shutil
import statistics
import subprocess

import numpy as np
import pytest
from test_replay import BROKEN, RECORDS, SIBLING, SPACE, on
from test_replaying import cache
from test_report import Outline
from test_search import CANDIDATES, DEFAULT, DEVICE, KERNEL, OPTIMUM, Prior, measurement, truth
from typer.testing import CliRunner

from costmodel import evaluate, floor, replay, report, strategies
from costmodel.cli import app
from costmodel.dataset import space_key
from costmodel.gate import telling
from costmodel.gate.verdicts import Finding, Rule, judge
from costmodel.notebook import format_us
from costmodel.records import Config, Kernel, Prediction, Problem, UserError, Variant
from costmodel.report import figures, landscape
from costmodel.report.page import Column, Html, counted, details, escaped, flowing, inline_svg, page, table
from costmodel.search import TuneResult

FINE = [m for m in RECORDS if m.status == "ok"]
DEFAULTS = {KERNEL.identity: DEFAULT.config}
EVIL = '<script>alert("x")</script> $\\frac{ & "onload=\'\x1b[31m'
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def predictions(rows, *, noise=0.3):
    return Prior(noise).predict([m.variant for m in rows], DEVICE)


def facts_of(text):
    return {html.unescape(k): v for k, v in re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", text)}


def rows_of(text, heading):
    """Cells of the first table after a heading, by the names of their columns."""
    found = re.search(r"<table>.*?</table>", text[text.index(heading) :], re.DOTALL)[0]
    plain = [
        [html.unescape(re.sub(r"<.*?>", "", cell)) for cell in re.findall(r"<t[hd].*?>(.*?)</t[hd]>", row)]
        for row in re.findall(r"<tr>(.*?)</tr>", found, re.DOTALL)
    ]
    return [dict(zip(plain[0], cells, strict=True)) for cells in plain[1:]]


def sound(text):
    """It parses, and asks for nothing from outside."""
    outline = Outline()
    outline.feed(text)
    assert outline.open == []
    assert all(link.startswith("#") for link in outline.links)
    assert not re.search(r"@import|url\((?!#)|https?:", text)
    assert not {"script", "img", "iframe", "object", "link", "image"} & set(outline.seen)
    assert not re.search(r"\son\w+=", re.sub(r'"[^"]*"', '""', re.sub(r">[^<]*<", "><", text)))
    assert "\x1b" not in text
    return outline


@pytest.fixture(scope="module")
def measured():
    return report.measured_html(RECORDS, defaults=DEFAULTS, predictions=predictions(FINE), notes=["a <note>"])


# ---------------------------------------------------------------------------------------------------- what is measured


def test_the_headline_is_that_of_evaluate(measured):
    mean = evaluate.evaluate(FINE, predictions(FINE)).iloc[-1]
    told = facts_of(measured)
    assert told["measurements"] == str(len(RECORDS))
    assert told["failed"] == str(len(BROKEN))
    assert told["rank correlation (Spearman)"] == f"{mean['spearman']:.3f}"
    assert told["median error"] == f"{mean['median_ape']:.1%}"
    assert told["optimum over the first pick"] == f"{mean['top1']:.1%}"
    assert told["held by 90\xa0% intervals"] == f"{mean['coverage90']:.1%}"
    assert told["default over best, geometric mean"] == landscape.times(truth(DEFAULT) / OPTIMUM)
    assert "a &lt;note&gt;" in measured


def test_the_tables_are_those_of_the_measurements(measured):
    pick = min(zip(FINE, predictions(FINE), strict=True), key=lambda one: one[1].median_us)[0]
    (row,) = rows_of(measured, ">Kernels<")
    assert (row["kernel"], row["problems"], row["configs"]) == (KERNEL.name, "1", str(len(RECORDS)))
    assert row["pick / best"] == landscape.times(pick.latency_us / OPTIMUM)
    (accuracy, mean) = rows_of(measured, "The table")
    assert accuracy["Kendall"] == f"{evaluate.evaluate(FINE, predictions(FINE)).iloc[0]['kendall']:.3f}"
    assert mean["kernel"] == "mean"
    (problem,) = rows_of(measured, ">Problems<")
    best = min(FINE, key=lambda m: m.latency_us)
    assert problem["best config"] == str(best.variant.config)
    assert problem["default"] == landscape.times(truth(DEFAULT) / OPTIMUM)
    assert problem["floor"] == f"{format_us(floor.floor_us(best.variant.problem, DEVICE))}, memory"
    outline = sound(measured)
    assert outline.seen.count("svg") - measured.count('aria-hidden="true"') == 3


def test_what_each_value_costs():
    (space,) = [landscape.told_of(s, {}).space for s in report.measured.recorded_spaces(RECORDS, {}, min_size=1)]
    costs = landscape.value_costs([space])
    for name, values in costs.items():
        for value, factor in values.items():
            own = [m.latency_us for m in FINE if m.variant.config[name] == value]
            assert factor == pytest.approx(min(own) / OPTIMUM)
    assert any(factor == 1.0 for factor in costs["A"].values())
    assert 32 not in costs["A"]  # all of them failed


def test_without_a_model_or_with_few_configs_the_page_says_so():
    plain = report.measured_html(RECORDS, defaults={})
    assert "Predicted against measured" not in plain
    assert "rank correlation" not in plain
    assert "default over best" not in plain
    few = report.measured_html(FINE[:5], defaults={}, predictions=predictions(FINE[:5]))
    assert "No problem has 8 measured configs" in few
    assert "rank correlation" not in few
    with pytest.raises(UserError, match="none that is ok"):
        report.measured_html([m for m in RECORDS if m.status != "ok"], defaults={})


def test_where_nothing_has_an_order_no_correlation_is_told():
    text = report.measured_html(FINE, defaults={}, predictions=[Prediction((3.0,), (1.0,))] * len(FINE))
    assert facts_of(text)["rank correlation (Spearman)"] == "-"
    assert rows_of(text, ">Kernels<")[0]["Spearman"] == "-"
    assert "nan" not in re.findall(r"\w+", text)


def test_operators_have_nothing_to_tune():
    operator = Kernel("bmm", "operator", None)
    rows = [
        measurement(Variant(operator, Problem("bmm", (), (("M", size),), size, size), Config(())), float(size))
        for size in range(1, 20)
    ]
    told = [Prediction((m.latency_us,), (1.0,)) for m in rows]
    text = report.measured_html(rows, defaults={}, predictions=told)
    assert facts_of(text)["problems on a device"] == "19"
    assert facts_of(text)["rank correlation (Spearman)"] == "1.000"
    assert ">Kernels<" not in text
    sound(text)


def test_an_unknown_scale_is_told_and_taken_out():
    told = [
        dataclasses.replace(p, scale_known=False, support_us=tuple(7 * us for us in p.support_us))
        for p in predictions(FINE, noise=0.0)
    ]
    text = report.measured_html(FINE, defaults={}, predictions=told)
    assert facts_of(text)["median error"] == "scale unknown"
    assert f"The scale of {len(FINE)} is unknown" in text
    asked = {(space_key(m), m.variant): p for m, p in zip(FINE, told, strict=True)}
    (space,) = report.measured.recorded_spaces(FINE, {}, min_size=1)
    factors = [predicted / true for true, predicted in landscape.told_of(space, asked).pairs]
    assert statistics.median(factors) == pytest.approx(1.0)


def test_devices_are_compared_by_what_is_carried_over():
    swapped = on(
        SIBLING, [m for m in RECORDS if m.variant != min(FINE, key=lambda m: m.latency_us).variant], factor=3.0
    )
    text = report.measured_html([*RECORDS, *swapped], defaults={})
    first, second = rows_of(text, ">Devices<")
    best_there = min((m for m in swapped if m.status == "ok"), key=lambda m: m.latency_us)
    by_name = {row["device"]: row for row in (first, second)}
    carried = truth(best_there.variant) / OPTIMUM
    assert by_name[DEVICE.name]["carried over"] == f"{SIBLING.name} {landscape.times(carried)}"
    assert by_name[SIBLING.name]["carried over"] == f"{DEVICE.name} not measured"
    assert "agrees by 1.000" in text
    assert "Devices</h2>" not in report.measured_html(RECORDS, defaults={})


def test_what_strangers_write_is_text():
    kernel = dataclasses.replace(KERNEL, name=EVIL)
    device = dataclasses.replace(DEVICE, name=EVIL)

    def evil(m, where):
        problem = dataclasses.replace(m.variant.problem, params=((EVIL, EVIL),))
        config = Config((*m.variant.config.params, (EVIL, f"{EVIL}{m.variant.config['A']}")))
        return dataclasses.replace(m, variant=Variant(kernel, problem, config), device=where, error=EVIL)

    rows = [evil(m, where) for m, where in itertools.product(RECORDS, (device, SIBLING))]
    told = [p for p in predictions(FINE) for _ in range(2)]
    text = report.measured_html(rows, title=EVIL, defaults={}, predictions=told, notes=[EVIL])
    sound(text)
    assert text.count("&lt;script&gt;") > 10
    assert "<script" not in text
    space = dataclasses.replace(SPACE, kernel=kernel, device=device)
    runs = list(replay.replay([space], {"random": strategies.random_search}, budget=5, seeds=2))
    sound(report.replay_html(replay.summary_rows(runs), runs, claims={}))


def test_a_kernel_takes_little_of_a_page():
    """So that `costmodel report --data datasets/cpu-cpp` fits a megabyte; its kernels have six problems, too."""
    rows = [
        dataclasses.replace(
            m, variant=Variant(kernel, dataclasses.replace(m.variant.problem, flops=n), m.variant.config)
        )
        for m in FINE
        for n in range(10**6, 7 * 10**6, 10**6)
        for kernel in (KERNEL, dataclasses.replace(KERNEL, name="another", source="other"))
    ]
    text = report.measured_html(rows, defaults=DEFAULTS, predictions=predictions(rows))
    parts = re.findall(r"<details><summary>(?!The table).*?</details>", text, re.DOTALL)
    assert len(parts) == 2
    assert all(len(part.encode()) < 25_000 for part in parts)
    assert [row["problems"] for row in rows_of(text, ">Kernels<")] == ["6", "6"]
    sound(text)


# -------------------------------------------------------------------------------------------------- search, gate, parts


def tuned(**changes):
    best = min(FINE, key=lambda m: m.latency_us)
    taken = [m for m in RECORDS if m.variant in BROKEN][:2] + FINE[:10] + [best]
    made = TuneResult(
        best=best.variant, best_us=OPTIMUM, default_us=3 * OPTIMUM, ties=(), measurements=tuple(taken), reused=4,
        space_size=len(CANDIDATES), p_better_remains=0.25, stopped_by="budget",
    )  # fmt: skip
    return dataclasses.replace(made, **changes)


def test_the_page_of_a_search():
    text = report.tuned_html(tuned(), default=FINE[0].variant)
    told = facts_of(text)
    assert told["default over best"] == "3.00x"
    assert told["measured"] == f"13 of {len(CANDIDATES)}"
    assert told["failed"] == "2"
    assert told["a config more than 5\xa0% faster was missed"] == "25% likely"
    rows = rows_of(text, ">The fastest<")
    assert rows[0][""] == "best"
    assert rows[0]["config"] == str(tuned().best.config)
    assert [row["config"] for row in rows if row[""] == "default"] == [str(FINE[0].variant.config)]
    assert "The first 4 were in the store" in text
    sound(text)
    failed = report.tuned_html(tuned(default_us=math.nan))
    assert "default failed" in failed
    assert "default over best" not in facts_of(failed)


def test_a_search_is_drawn_as_it_went():
    figure = figures.search_figure([math.nan, 8.0, 9.0, 2.0], 4.0)
    curve, default = figure.axes[0].get_lines()
    assert curve.get_ydata().tolist()[1:] == [8.0, 8.0, 2.0]
    assert default.get_ydata() == [4.0, 4.0]


def test_a_landscape_is_sorted_and_marks_lie_on_it():
    latencies = [4.0, 1.0, 2.0, 8.0]
    ax = figures.landscape_figure([(figures.MEASURED, latencies, 2.0, 8.0)]).axes[0]
    (curve,) = ax.get_lines()
    assert curve.get_ydata().tolist() == [1.0, 2.0, 4.0, 8.0]
    places = [tuple(patch.get_path().vertices[0]) for patch in ax.patches]
    assert set(places) == {(0.5, 2.0), (1.0, 8.0)}


def test_the_page_of_a_gate():
    rng = np.random.default_rng(1)
    pairs = {
        name: [(100.0, 100.0 * (1 + slow + 0.005 * rng.normal())) for _ in range(18)]
        for name, slow in {"test_same": 0.0, EVIL: 0.2}.items()
    }
    found = [*judge(pairs, Rule()).values(), Finding("gone", "not comparable", 0.05, reason="base: not measured")]
    text = report.gate_html(found, title="base abc")
    cells = [list(row.values()) for row in rows_of(text, ">Findings<")]
    assert cells == [[html.unescape(escaped(cell)) for cell in row] for row in telling.rows(found)]
    assert telling.summary(found) in text
    assert "base abc" in text
    sound(text)
    nothing = report.gate_html([])
    assert "Nothing to compare" in nothing
    assert "<svg" not in nothing


def test_what_is_written_in_a_figure_is_on_the_page():
    """All of it, however matplotlib orders what it says of a text."""
    runs = replay.replay([SPACE], {"random": strategies.random_search}, budget=10, seeds=2)
    curves = inline_svg(report.curves_figure(runs), "told")
    name = "left <aligned> $x=0.125 #000000"
    rows = [(name, [0.1, 0.2], 0.15, 0.1, 0.2, 0.05, True)]
    strips = inline_svg(figures.pairs_figure(rows), "told")
    for svg, lines in (
        (curves, {"toy, test cpu", "n=64", "benchmarks", "share of the optimum reached", "random", "1", "10", "100%"}),
        (strips, {name, "slow-down of head over base"}),
    ):
        assert lines <= {html.unescape(text) for text in re.findall(r"<text[^>]*>(.*?)</text>", svg)}
    slopes = inline_svg(figures.landscape_figure([(figures.MEASURED, [1.0, 2.0, 3.0], None, None)]), "told")
    assert ">1.25</text>" in slopes
    assert len(re.findall(r"stroke: #0072b2", curves)) == 2  # the line, and the one in the legend


def test_pairs_are_drawn_at_their_slow_downs():
    rows = [("a", [0.1, 0.2], 0.15, 0.1, 0.2, 0.05, True), ("b", [0.0], 0.0, -math.inf, math.inf, 0.05, False)]
    ax = figures.pairs_figure(rows).axes[0]
    assert ax.patches[0].get_path().vertices[::2].tolist() == [[0.1, 0.0], [0.2, 0.0]]
    diamonds = [line for line in ax.get_lines() if line.get_marker() == "D"]
    assert [(line.get_xdata()[0], line.get_ydata()[0]) for line in diamonds] == [(0.15, 0), (0.0, 1)]
    left, right = ax.get_xlim()
    assert left < 0
    assert right > 0.2


def test_text_is_escaped_once_and_html_never():
    assert escaped("a<b\n5 %") == "a&lt;b 5\xa0%"
    assert escaped(Html("<b>")) == "<b>"
    assert flowing("A=1,B=2, c") == "A=1,<wbr>B=2, c"
    assert counted(1, "kernel") == "1 kernel"
    assert counted(1200, "kernel") == "1,200 kernels"
    made = table(["name", "count", "nothing", Column("why", text=True)], [["<x>", 3, "", "a,b"]])
    assert "nothing" not in made
    assert '<td>&lt;x&gt;</td><td data-name="count">3</td><td class="text" data-name="why">a,<wbr>b</td>' in made
    assert '<div id="here">' in details("t", "inside", anchor="here")
    assert details("t", opened=True).startswith("<details open>")


# ----------------------------------------------------------------------------------------------------------- as a user


def run(*arguments):
    done = CliRunner().invoke(app, ["report", *map(str, arguments)], catch_exceptions=True)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


def test_the_command_reads_what_others_measured(tmp_path):
    records = [
        cache(tmp_path / "a100.json", "NVIDIA A100-PCIE-40GB", 1.0),
        cache(tmp_path / "a4000.json", "NVIDIA RTX A4000", 3.0),
    ]
    data = [word for record in records for word in ("--data", record)]
    out = tmp_path / "new" / "page.html"
    done = run(*data, "--no-predict", "--out", out, "--json")
    document = json.loads(done.stdout.splitlines()[-1])
    assert document == {"html": str(out), "rows": 100, "predicted": 0, "bytes": out.stat().st_size}
    text = out.read_text()
    assert facts_of(text)["devices"] == "2"
    assert "Measuring took: compiling 40.0 s, running 10.0 s." in text
    assert "Devices</h2>" in text
    sound(text)


def test_mistakes_are_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("COSTMODEL_STORE", str(tmp_path / "store.sqlite"))
    with pytest.raises(UserError, match="got no measurement in the store"):
        run("--out", tmp_path / "p.html")
    with pytest.raises(UserError, match="--data beside --store"):
        run("--data", tmp_path, "--store", tmp_path / "store.sqlite")


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_lays_it_out_without_scrolling_sideways(measured, width, tmp_path):
    """With every part open. A frame is as narrow as a phone, a window is not; a script in a copy reads the widths."""
    wide = page("A page", measured[measured.index("<dl") :], report.tuned_html(tuned()))
    probe = "<script>parent.document.title = document.documentElement.scrollWidth + ' of ' + innerWidth</script></body>"
    inside = html.escape(wide.replace("<details>", "<details open>").replace("</body>", probe))
    file = tmp_path / "page.html"
    file.write_text(f'<title>none</title><iframe style="width:{width}px;border:0" srcdoc="{inside}"></iframe>')
    done = subprocess.run(
        [
            CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
            "--window-size=1400,900", "--hide-scrollbars", "--dump-dom", file.as_uri(),
        ],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert re.search(r"<title>(.*?)</title>", done.stdout)[1] == f"{width} of {width}", done.stderr[-500:]
