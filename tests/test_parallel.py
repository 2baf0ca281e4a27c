"""Several processes learn what one learns, go on with another number of them, and survive the loss of one."""

import os
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_predictor import TINY, TRAINING
from training_runs import examples, history, run, together

from costmodel.examples import shards_of
from costmodel.model import checkpoint
from costmodel.parallel import ALONE, Processes


def largest_difference(one, other):
    differences = [0.0]
    for a, b in zip(one, other, strict=True):
        assert (a is None) == (b is None)  # what one process has no gradient of, several have none of
        if a is not None:
            differences.append(float(np.abs(np.asarray(a) - np.asarray(b)).max()))
    return max(differences)


@pytest.mark.parametrize(("objective", "count"), [("latency", 2), ("latency", 3), ("next-token", 2)])
def test_losses_and_gradients_are_those_of_one_process(tmp_path, objective, count):
    alone, _ = run(ALONE, objective, tmp_path / "one")
    answers = together(count, objective, tmp_path / "several")
    assert len(alone) == 6
    for gradients, _ in answers:
        assert all(largest_difference(a, b) <= 1e-5 for a, b in zip(alone, gradients, strict=True))
    one, several = history(tmp_path / "one", objective)[0], history(tmp_path / "several", objective)[0]
    assert len(one) == 6
    for a, b in zip(one, several, strict=True):
        assert a == pytest.approx(b, abs=1e-5)
        assert set(a) == ({"loss"} if objective == "next-token" else {"loss", "ce", "raft", "pairwise"})


@pytest.mark.parametrize("objective", ["latency", "next-token"])
def test_a_run_goes_on_with_another_number_of_processes(tmp_path, objective):
    _, straight = run(ALONE, objective, tmp_path / "straight", exact=True)
    folder = tmp_path / "moved"
    run(ALONE, objective, folder, exact=True, stop_at=3)
    assert history(folder, objective)[1] == 2
    answers = together(2, objective, folder, exact=True, stop_at=2)
    assert [len(gradients) for gradients, _ in answers] == [2, 2]  # steps 2 and 3, not the first two again
    assert largest_difference(answers[0][1], answers[1][1]) == 0  # they do not drift apart
    assert history(folder, objective)[1] == 4
    gradients, weights = run(ALONE, objective, folder, exact=True)
    assert len(gradients) == 2
    assert largest_difference(straight, weights) <= 1e-5


@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_process_ends_the_run_with_one_line_and_leaves_the_checkpoint(tmp_path, killed):
    answers = together(2, "latency", tmp_path, exact=True, stop_at=2, killed=killed)
    assert answers[killed] is None
    assert "another process of this run has ended" in answers[1 - killed]
    assert "\n" not in answers[1 - killed]
    assert history(tmp_path, "latency")[1] == 2
    _, straight = run(ALONE, "latency", tmp_path / "straight", exact=True)
    gradients, weights = run(ALONE, "latency", tmp_path, exact=True)
    assert len(gradients) == 4
    assert largest_difference(straight, weights) <= 1e-5


def test_processes_that_were_given_other_data_say_so(tmp_path):
    groups = examples("latency")
    answers = together(2, "latency", tmp_path, data_of_rank=[groups, groups[1:]])
    assert all("other examples on one process" in answer for answer in answers)


@dataclass(frozen=True)
class Piece:
    rows: int


@given(st.lists(st.builds(Piece, st.integers(1, 200)), min_size=1, max_size=12), st.integers(1, 9))
def test_every_part_is_computed_once(parts, count):
    shares = [Processes(rank, count).share(parts) for rank in range(count)]
    assert [id(part) for share in shares for part in share] == [id(part) for part in parts]
    largest = max(part.rows for part in parts)
    assert all(sum(p.rows for p in share) <= sum(p.rows for p in parts) / count + largest for share in shares)


def test_torchrun_trains_the_model_that_one_process_trains(tmp_path):
    texts = shards_of(TRAINING, replace(TINY, members=1))
    replace(texts, groups=examples("latency")).save(tmp_path / "shards")
    command = ["train", "--shards", str(tmp_path / "shards"), "--objective", "latency", "--steps", "2", "--out"]
    cli = "import sys; from costmodel.cli import main; main()"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    alone = [sys.executable, "-c", cli, *command, str(tmp_path / "one")]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--no-python"]
    for started in (alone, [*launch, sys.executable, "-c", cli, *command, str(tmp_path / "two")]):
        done = subprocess.run(started, env=environment, capture_output=True, text=True, cwd=Path(__file__).parent)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("wrote") == 1
    one, two = (history(tmp_path / name / "training" / "member-0", "latency") for name in ("one", "two"))
    assert one[1] == two[1] == 2
    assert all(a == pytest.approx(b, abs=1e-5) for a, b in zip(one[0], two[0], strict=True))
    assert checkpoint.load(tmp_path / "two")[0]
