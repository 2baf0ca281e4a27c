"""The plot and the page of a replay."""

import dataclasses
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from test_replay import SIBLING, SPACE, Prior, on

from costmodel import replay, report, strategies
from costmodel.records import UserError


@pytest.fixture(scope="module")
def runs():
    chosen = {
        "random": strategies.random_search,
        "ours & <others>": strategies.guided(strategies.prior_of([Prior(0.3)])),
        "ranking": strategies.ranked(strategies.prior_of([Prior(0.3)])),
    }
    return list(replay.replay([SPACE], chosen, budget=30, seeds=4))


def test_the_plot_holds_the_medians_and_the_quartiles(runs):
    (ax,) = (ax for ax in report.curves_figure(runs).axes if ax.get_visible())
    lines = {line.get_label(): line for line in ax.get_lines()}
    fractions = np.array([run.fractions() for run in runs if run.strategy == "random"])
    assert lines["random"].get_xdata().tolist() == list(range(1, 31))
    assert lines["random"].get_ydata() == pytest.approx(np.median(fractions, axis=0))
    assert len({(line.get_color(), line.get_linestyle()) for line in lines.values()}) == len(lines)
    assert len(ax.collections) == 2  # a band for each strategy that has seeds


def test_a_picture_is_written_and_is_the_same_every_time(runs, tmp_path):
    for name in ("a.png", "b.png"):
        report.write_png(report.curves_figure(runs), tmp_path / "new" / name)
    first, second = ((tmp_path / "new" / name).read_bytes() for name in ("a.png", "b.png"))
    assert first.startswith(b"\x89PNG")
    assert first == second


def test_reliability_is_drawn_as_observed_over_claimed(tmp_path):
    ranks = {"calibrated": np.linspace(0.001, 0.999, 999), "too narrow": np.repeat([0.0, 1.0], 50)}
    left, right = (figure := report.reliability_figure(ranks)).axes
    lines = {line.get_label(): line for line in left.get_lines()}
    assert lines["calibrated"].get_ydata() == pytest.approx(lines["calibrated"].get_xdata(), abs=0.01)
    assert set(lines["too narrow"].get_ydata()) == {0.5}
    shares = [patch.get_data().values for patch in right.patches]
    assert shares[0] == pytest.approx([0.1] * 10, abs=0.002)
    assert shares[1].tolist() == [0.5, *[0.0] * 8, 0.5]
    report.write_png(figure, tmp_path / "reliability.png")
    assert (tmp_path / "reliability.png").stat().st_size > 5000
    with pytest.raises(UserError, match="nothing to draw"):
        report.reliability_figure({})


def test_risk_coverage_is_drawn_surest_first():
    (ax,) = report.risk_coverage_figure({"width": ([3.0, 1.0, 2.0], [3.0, 1.0, 2.0])}).axes
    (line,) = ax.get_lines()
    assert line.get_label() == "width (1.5)"
    assert line.get_ydata().tolist() == [1.0, 1.5, 2.0]


class Outline(HTMLParser):
    """Counts tags and checks that they close in order."""

    def __init__(self):
        super().__init__()
        self.open, self.seen, self.links = [], [], []

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href", "xlink:href")]
        if tag not in ("meta", "br", "wbr"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_whole_and_needs_no_network(runs):
    rows = replay.summary_rows(runs)
    claims = {"ours & <others>": replay.stop_rule(runs)}
    page = report.replay_html(rows, runs, comparisons=["ours needs 0.5 times"], claims=claims)
    outline = Outline()
    outline.feed(page)
    assert outline.open == []
    assert outline.seen.count("svg") == 1
    assert outline.seen.count("table") == 2
    assert all(link.startswith("#") for link in outline.links)
    assert not re.search(r"@import|<script|url\((?!#)", page)
    assert "ours &amp; &lt;others&gt;" in page
    assert "ours needs 0.5 times" in page


def test_cells_say_never_and_give_intervals(runs):
    rows = {row["strategy"]: row for row in replay.summary_rows(runs)}
    headings = report.summary_headings(list(rows.values()))
    ranking = dict(zip(headings, report.summary_cells(rows["ranking"]), strict=True))
    assert "[" not in ranking["at 30"]
    row = {**rows["random"], "evaluations_to": {"0.05": None, "0.01": None}}
    row["evaluations_to_interval"] = {"0.05": [12.0, None], "0.01": [None, None]}
    told = dict(zip(headings, report.summary_cells(row), strict=True))
    assert (told["to 5 %"], told["to 1 %"], told["seconds to 5 %"]) == (">30 [12, >30]", ">30", "-")


def test_spaces_stand_two_in_a_row(runs):
    other = dataclasses.replace(SPACE, device=SIBLING, measurements=tuple(on(SIBLING)))
    more = replay.replay([other], {"random": strategies.random_search}, budget=30, seeds=2)
    titles = [ax.get_title(loc="left") for ax in report.curves_figure([*runs, *more]).axes]
    assert titles == ["toy, test cpu\nn=64", "toy, sibling cpu\nn=64"]


def test_mistakes(runs, tmp_path):
    with pytest.raises(UserError, match="no runs"):
        report.curves_figure([])
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write"):
        report.write_html("x", tmp_path / "file" / "page.html")
