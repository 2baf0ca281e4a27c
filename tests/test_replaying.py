"""`costmodel replay` as a user runs it, on a Kernel Tuner cache that the test writes."""

import itertools
import json

import pytest
from typer.testing import CliRunner

from costmodel.cli import app
from costmodel.records import UserError


def cache(path, device, factor):
    """A brute-forced space of 5 x 5 x 2 configs, one of which fails, in the format of Kernel Tuner's cache files."""
    params = {"block_size_x": [16, 32, 64, 128, 256], "tile_size_x": [1, 2, 3, 4, 5], "use_padding": [0, 1]}
    entries = {}
    for x, tile, padding in itertools.product(*params.values()):
        ms = factor * (1 + abs(x - 64) / 64 + 0.3 * abs(tile - 3) + 0.1 * padding)
        entry = {
            "block_size_x": x,
            "tile_size_x": tile,
            "use_padding": padding,
            "time": ms,
            "times": [ms, 1.01 * ms, ms],
        }
        if (x, tile) == (256, 5):
            entry |= {"time": "RuntimeFailedConfig"}
            del entry["times"]
        costs = {"compile_time": 400.0, "verification_time": 0, "benchmark_time": 100.0}
        entries[f"{x},{tile},{padding}"] = entry | costs | {"timestamp": "2024-01-01 00:00:00+00:00"}
    document = {
        "device_name": device, "kernel_name": "mine", "problem_size": [4096], "tune_params_keys": list(params),
        "tune_params": params, "objective": "time", "cache": entries,
    }  # fmt: skip
    path.write_text(json.dumps(document))
    return str(path)


@pytest.fixture(scope="module")
def caches(tmp_path_factory):
    folder = tmp_path_factory.mktemp("caches")
    return (
        cache(folder / "a100.json", "NVIDIA A100-PCIE-40GB", 1.0),
        cache(folder / "a4000.json", "NVIDIA RTX A4000", 3.0),
    )


def run(*arguments):
    done = CliRunner().invoke(app, ["replay", *map(str, arguments)], catch_exceptions=True)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


def test_a_cache_is_replayed_as_it_is(caches, tmp_path):
    names = ("random", "gaussian-process", "extra-trees")
    options = [word for name in names for word in ("--strategy", name)]
    done = run(
        caches[0], *options, "--seeds", 3, "--budget", 20, "--json",
        "--plot", tmp_path / "p.png", "--html", tmp_path / "p.html",
    )  # fmt: skip
    rows = json.loads(done.stdout.splitlines()[-1])
    assert [row["strategy"] for row in rows] == list(names)
    for row in rows:
        assert row["device"] == "NVIDIA A100-PCIE-40GB"
        assert (row["size"], row["failures"], row["seeds"]) == (50, 2, 3)
        assert set(row["fraction_at"]) == {"1", "10", "20", "50", "100"}
        assert row["fraction_at"]["50"] is None
        reached = row["evaluations_to"]["0.05"]
        if reached is not None and reached == int(reached):
            assert row["seconds_to"]["0.05"] == pytest.approx(0.5 * reached)
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (tmp_path / "p.html").read_text()


def test_two_strategies_stand_side_by_side(caches):
    done = run(caches[0], "--strategy", "nearest-table", "--strategy", "random", "--store", caches[1], "--seeds", 4)
    assert "nearest-table needs" in done.stdout
    assert "[" in done.stdout


def test_the_store_may_hold_the_space_itself_and_nothing_leaks(caches):
    def rows(*store):
        words = [word for path in store for word in ("--store", path)]
        done = run(caches[0], "--strategy", "nearest-table", *words, "--json")
        return json.loads(done.stdout.splitlines()[-1])

    assert rows(caches[1]) == rows(caches[0], caches[1])
    with pytest.raises(UserError, match="--store"):
        rows(caches[0])


def test_mistakes_are_named(caches, tmp_path):
    with pytest.raises(UserError, match="expected one of costmodel, rank, random"):
        run(caches[0], "--strategy", "anealing")
    with pytest.raises(UserError, match="no file"):
        run(tmp_path / "absent.json", "--strategy", "random")


def test_the_strategies_are_listed(caches):
    done = run(caches[0], "--strategy", "list")
    assert "greywolf" in done.stdout
