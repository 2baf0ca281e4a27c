"""`costmodel graph show` and `costmodel predict --graph` as a user types them."""

import json
import sys
from pathlib import Path

import pytest
from programs import chain, rows

from costmodel.cli import main
from costmodel.graph_model import GraphConfig, GraphModel

GOLDEN = Path(__file__).parent / "golden" / "hlo" / "optimized.hlo"
MODEL = """
import torch
from torch import nn

def build():
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)), (torch.zeros(2, 8),)

def wrong():
    return 3

def failing():
    raise ValueError("no such thing")
"""


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("graph-model")
    model = GraphModel(GraphConfig(hidden=16, layers=1, vocab_size=512, steps=3, batch=4))
    model.fit(rows(8))
    model.save(folder)
    return folder


@pytest.fixture
def typed(monkeypatch, capsys):
    """Runs a command: (exit code, standard output, standard error)."""

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["costmodel", *map(str, words)])
        with pytest.raises(SystemExit) as left:
            main()
        told = capsys.readouterr()
        return left.value.code, told.out, told.err

    return run


def test_show_lists_the_heaviest_lines_by_the_shipped_model(typed, tmp_path):
    code, out, _ = typed("graph", "show", GOLDEN, "--json", "--out", tmp_path / "picture.svg")
    assert code in (0, None)
    told = json.loads(out.splitlines()[-1])
    assert told["trust"]
    costs = [row["cost_us"] for row in told["heaviest"]]
    assert costs == sorted(costs, reverse=True)
    assert sum(row["share"] for row in told["heaviest"]) == pytest.approx(1.0 if told["lines"] <= 10 else 0.9, abs=0.1)
    assert (tmp_path / "picture.svg").read_text().lstrip().startswith("<?xml")


def test_show_is_a_table_for_people(typed):
    code, out, _ = typed("graph", "show", GOLDEN)
    assert code in (0, None)
    assert "analytic floor" in out
    assert "tanh" in out


@pytest.mark.parametrize("engine", ["eager", "compile", "xla"])
def test_the_shipped_model_knows_a_product_on_every_engine(typed, tmp_path, engine):
    """512^3 multiply-adds in f32 on one core take a millisecond or a few."""
    text = tmp_path / "dot.hlo"
    text.write_text(
        "HloModule m\nENTRY e {\n  a = f32[512,512] parameter(0)\n  b = f32[512,512] parameter(1)\n"
        "  ROOT c = f32[512,512] dot(a, b), lhs_contracting_dims={1}, rhs_contracting_dims={0}\n}\n"
    )
    told = json.loads(typed("predict", text, "--graph", "--engine", engine, "--json")[1])
    assert 500 < told["median_us"] < 15_000


def test_a_model_predicts_a_file_and_a_torch_module(typed, tmp_path, monkeypatch, model_folder):
    text = tmp_path / "chain.hlo"
    text.write_text(chain(3))
    shown = json.loads(typed("graph", "show", text, "--model", model_folder, "--json")[1])
    told = json.loads(typed("predict", text, "--graph", "--model", model_folder, "--json")[1])
    assert told == shown
    assert 0 < told["q05_us"] < told["median_us"] < told["q95_us"]
    (tmp_path / "model.py").write_text(MODEL)
    monkeypatch.chdir(tmp_path)
    code, out, err = typed("predict", "model.py:build", "--graph", "--device", "cpu", "--model", model_folder, "--json")
    assert code in (0, None), err
    assert any("dot" in row["line"] for row in json.loads(out.splitlines()[-1])["heaviest"])


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("graph", "show", "model.py"), "FILE.py:FUNCTION"),
        (("graph", "show", "model.py:nothing"), "no function 'nothing'"),
        (("graph", "show", "model.py:wrong"), "got a int from wrong"),
        (("graph", "show", "model.py:failing"), "no such thing"),
        (("graph", "show", "missing.py:build"), "no file missing.py"),
        (("graph", "show", "missing.hlo"), "missing.hlo"),
        (("graph", "show", "broken.hlo"), "broken.hlo"),
        (("graph", "show", "good.hlo", "--device", "H200"), "expected cpu"),
        (("graph", "show", "good.hlo", "--engine", "abacus"), "expected one of compile"),
        (("graph", "show", "good.hlo", "--out", "picture.bmp"), "picture.bmp"),
        (("graph", "show", "good.hlo", "--model", "nowhere"), "nowhere"),
    ],
)
def test_a_mistake_is_one_line(typed, tmp_path, monkeypatch, words, expected):
    (tmp_path / "model.py").write_text(MODEL)
    (tmp_path / "broken.hlo").write_text("HloModule m\nENTRY e { x = f32[2 parameter(0) }")
    (tmp_path / "good.hlo").write_text(chain(1))
    monkeypatch.chdir(tmp_path)
    code, _, err = typed(*words)
    assert code == 2
    assert len(err.strip().splitlines()) == 1
    assert expected in err


def test_a_file_from_elsewhere_is_not_executed_unasked(typed, tmp_path, monkeypatch):
    (tmp_path / "model.py").write_text("raise SystemExit('executed')\n")
    (tmp_path / "here").mkdir()
    monkeypatch.delenv("COSTMODEL_TRUST", raising=False)
    monkeypatch.chdir(tmp_path / "here")
    code, _, err = typed("graph", "show", "../model.py:build")
    assert code == 2
    assert "--trust" in err
    assert "executed" not in err
