"""How nouns show themselves: in words, and as HTML in a notebook."""

import itertools
import math
from html.parser import HTMLParser

import pytest
from test_search import CANDIDATES, measurement

from costmodel import notebook
from costmodel.gate.verdicts import Finding
from costmodel.records import Prediction
from costmodel.search import TuneResult

TOLD = Prediction((1.0, 2.0, 4.0, 8.0), (0.1, 0.4, 0.4, 0.1), p_fail=0.2, trust=False, reason="unlike <training>")
MEASURED = tuple(
    measurement(v, us) for v, us in zip(CANDIDATES, [None, *(1000.0 / (1 + i) for i in range(99))], strict=False)
)
TUNED = TuneResult(
    best=MEASURED[-1].variant, best_us=10.0, default_us=25.0, ties=(), measurements=MEASURED, reused=0,
    space_size=105, p_better_remains=0.25, stopped_by="budget",
)  # fmt: skip
SLOWER = Finding("test_<b>", "regressed", 0.05, 0.1, 0.07, 0.13, p=0.01, pairs=((1.0, 1.1),) * 6)


class Cells(HTMLParser):
    """Rows of the table, by name, and the heights of the bars; tags must close in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.texts, self.heights = [], [], []
        self.feed(text)
        assert not self.open
        cells = [text for tag, text in self.texts if tag in ("th", "td")]
        self.rows = dict(zip(cells[::2], cells[1::2], strict=True))

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        if tag == "rect":
            self.heights.append(float(dict(attrs)["height"]))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append((self.open[-1], data))


def test_latencies_have_four_digits_in_a_unit_that_fits():
    told = [notebook.format_us(us) for us in (812.34, 4127.0, 1.5e6, 0.01234, math.nan, math.inf)]
    assert told == ["812.3 us", "4.127 ms", "1.5 s", "0.01234 us", "-", "-"]


def test_a_prediction_is_short_in_words():
    assert repr(TOLD) == (
        "Prediction(median 3 us, 90 % between 1.25 us and 7 us, may fail 20%, do not trust unlike <training>)"
    )
    unscaled = Prediction((1.0, 2.0), (0.5, 0.5), scale_known=False)
    assert "only the order" in repr(unscaled)
    assert "trust" not in repr(unscaled)


def test_a_prediction_in_a_notebook_shows_its_figures_and_its_distribution():
    shown = Cells(TOLD._repr_html_())
    assert shown.rows["median"] == notebook.format_us(TOLD.median_us)
    assert shown.rows["do not trust"] == "unlike <training>"
    low, high = TOLD.quantile_us(0.01), TOLD.quantile_us(0.99)
    count = len(shown.heights)
    edges = [low * (high / low) ** (i / count) for i in range(count + 1)]
    mass = [TOLD.probability_below(b) - TOLD.probability_below(a) for a, b in itertools.pairwise(edges)]
    assert shown.heights == pytest.approx([40 * m / max(mass) for m in mass], abs=0.06)
    assert Cells(Prediction((5.0,), (1.0,))._repr_html_()).heights == []


def test_a_search_in_a_notebook_shows_how_near_it_was():
    shown = Cells(TUNED._repr_html_())
    assert shown.rows["default"] == "25 us, 2.50x the best"
    assert shown.rows["measured"] == "100 of 105 configs"
    assert len(shown.heights) == notebook.MOST_BARS
    assert shown.heights[0] == 0.0  # the first one failed
    assert shown.heights[-1] == 40.0
    assert shown.heights == sorted(shown.heights)
    assert len(repr(TUNED)) < 300


def test_a_finding_in_a_notebook_shows_its_sentence():
    shown = Cells(SLOWER._repr_html_())
    assert shown.rows["verdict"] == "regressed"
    assert shown.rows["found"] == "measured 10.0% slower than base, threshold 5% (p 0.01, 6 pairs)"
    assert shown.rows["pairs"].split(", ") == ["+10.0%"] * 6
    assert ("strong", "test_<b>") in shown.texts
