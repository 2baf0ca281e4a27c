"""Training learns, resumes exactly and obeys its schedule."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from costmodel import train as training
from costmodel.batches import PAD, LatencyBatches
from costmodel.codecs.digits import P10
from costmodel.codecs.grids import LogGrid
from costmodel.model import checkpoint, decoder
from costmodel.model.digit_head import DigitHead
from costmodel.model.grid_head import GridHead
from costmodel.records import UserError
from costmodel.train import Group, TrainConfig, fresh_members, train

torch.set_num_threads(1)


def numbers_group(numbers, prefix):
    """A number in text, digit by digit and closed by token 10; its slowdown is the number."""
    suffixes = [[*map(int, f"{n:03d}"), 10] for n in numbers]
    return Group(prefix[:1], [prefix[1:]], suffixes, np.log2(numbers), np.zeros(len(numbers), dtype=bool))


def tiny(head="grid", seeds=(0,)):
    make = (lambda d: GridHead(d, LogGrid())) if head == "grid" else (lambda d: DigitHead(d, P10(mantissa_digits=2)))
    return fresh_members(decoder.small_config(16, hidden_size=32, layers=2, heads=2), make, seeds=seeds)


def weights(members):
    return [p.detach().clone() for m in members for part in (m.backbone, m.head) for p in part.parameters()]


def predict(member, group):
    with torch.inference_mode():
        ids = [*group.source, *group.contexts[0]]
        prefix = decoder.encode_prefix(member.backbone, torch.as_tensor(ids))
        return member.head.distribution(member.backbone, prefix, *decoder.pad(group.suffixes))


def test_a_number_in_the_text_can_be_learned():
    rng = np.random.default_rng(0)
    numbers = rng.permutation(np.arange(1, 1000))
    prefix = [11, 12, 13, 14, 15]
    members = tiny()
    train([numbers_group(numbers[:800], prefix)], TrainConfig(steps=250, token_dropout=0.0), members=members)
    held_out = numbers_group(numbers[800:], prefix)
    d = predict(members[0], held_out)
    assert spearmanr(d.mean(), held_out.z).statistic > 0.95
    inside = (d.quantile(0.05).numpy() < held_out.z) & (held_out.z < d.quantile(0.95).numpy())
    assert inside.mean() > 0.8
    assert d.p_fail.max() < 0.05


def test_failures_are_learned():
    """The last digit decides: 7, 8 and 9 fail."""
    rng = np.random.default_rng(1)
    numbers = rng.permutation(np.arange(1, 1000))
    suffixes = [[*map(int, f"{n:03d}"), 10] for n in numbers]
    failed = numbers % 10 > 6
    z = np.where(failed, np.nan, 0.0)
    members = tiny()
    group = Group([11], [[12]], suffixes[:800], z[:800], failed[:800])
    train([group], TrainConfig(steps=80, token_dropout=0.0), members=members)
    p_fail = predict(members[0], Group([11], [[12]], suffixes[800:], z[800:], failed[800:])).p_fail.numpy()
    assert p_fail[failed[800:]].min() > p_fail[~failed[800:]].max()


def test_rank_only_groups_teach_the_order_whatever_their_level():
    rng = np.random.default_rng(2)
    numbers = rng.permutation(np.arange(1, 1000))
    group = numbers_group(numbers[:800], [11, 12])
    shifted = dataclasses.replace(group, z=group.z + 100.0, rank_only=True)  # far off the grid
    members = tiny()
    train([shifted], TrainConfig(steps=100, token_dropout=0.0), members=members)
    held_out = numbers_group(numbers[800:], [11, 12])
    mean = predict(members[0], held_out).mean()
    assert spearmanr(mean, held_out.z).statistic > 0.9
    assert mean.max() < 14.5


def test_digits_are_learned():
    rng = np.random.default_rng(3)
    numbers = rng.permutation(np.arange(1, 1000))
    members = tiny("digits")
    config = TrainConfig(steps=200, rows=64, adamw_lr=5e-3, token_dropout=0.0)
    train([numbers_group(numbers[:900], [11, 12])], config, members=members)
    held_out = numbers_group(numbers[900:930], [11, 12])
    assert spearmanr(predict(members[0], held_out).mean(), held_out.z).statistic > 0.9


@pytest.mark.parametrize("objective", ["latency", "next-token"])
def test_a_killed_run_resumes_to_the_same_weights(tmp_path, monkeypatch, objective):
    config = TrainConfig(objective=objective, steps=9, rows=16, groups=2, warmup_steps=3, window=12, checkpoint_steps=2)
    examples = [numbers_group(np.arange(1 + i, 40 + 7 * i), [11, 12 + i]) for i in range(3)]
    if objective == "next-token":
        examples = [token for g in examples for token in g.suffixes]
    straight = tiny(seeds=(0, 1))
    train(examples, config, members=straight)

    class Killed(BaseException):
        pass

    clip, calls = torch.nn.utils.clip_grad_norm_, []

    def clip_until_killed(*args):
        calls.append(1)
        if len(calls) == 15:  # member 1, step 5: its checkpoint stands at 4
            raise Killed
        return clip(*args)

    killed = tiny(seeds=(0, 1))
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", clip_until_killed)
    with pytest.raises(Killed):
        train(examples, config, members=killed, checkpoints=tmp_path)
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", clip)
    resumed = tiny(seeds=(0, 1))
    summary = train(examples, config, members=resumed, checkpoints=tmp_path)
    assert summary.resumed_from == (9, 4)
    for a, b in zip(weights(straight), weights(resumed), strict=True):
        assert (a - b).abs().max() <= 1e-6
    with pytest.raises(UserError, match="another config"):
        train(examples, TrainConfig(objective=objective, steps=10), members=resumed, checkpoints=tmp_path)


def test_members_differ_and_equal_seeds_agree():
    group = numbers_group(np.arange(1, 60), [11, 12])
    config = TrainConfig(steps=3, rows=8)
    first, second = tiny(seeds=(0, 1)), tiny(seeds=(0, 1))
    for members in (first, second):
        train([group], config, members=members)
    assert all(torch.equal(a, b) for a, b in zip(weights(first), weights(second), strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(weights(first[:1]), weights(first[1:]), strict=True))


def test_next_token_stage_learns_the_text_and_leaves_the_head_alone():
    text = [1, 2, 3, 4, 5, 6, 7] * 40
    members = tiny()
    head = [p.clone() for p in members[0].head.parameters()]
    config = TrainConfig(objective="next-token", steps=80, window=20, windows=4, warmup_steps=5)
    summary = train([text], config, members=members)
    last = members[0].backbone(input_ids=torch.tensor([text[:20]])).logits[0]
    assert last[2:].argmax(-1).tolist() == text[3:21]
    assert summary.losses[0]["loss"] < math.log(16)
    assert all(torch.equal(a, b) for a, b in zip(head, members[0].head.parameters(), strict=True))


def test_schedule_and_optimizer_split():
    config = TrainConfig(steps=100, warmup_steps=10)
    shares = [training.lr_share(step, config) for step in range(100)]
    assert shares[0] == pytest.approx(0.1)
    assert max(shares) == pytest.approx(1.0)
    assert shares.index(max(shares)) in (9, 10)
    assert all(a >= b for a, b in itertools.pairwise(shares[10:]))
    assert 0.03 <= shares[-1] < 0.032
    [member] = tiny()
    network = torch.nn.ModuleDict({"backbone": member.backbone, "head": member.head})
    muon, adamw = training.make_optimizers(network, config)
    in_muon, in_adamw = ({id(p) for g in o.param_groups for p in g["params"]} for o in (muon, adamw))
    for name, parameter in network.named_parameters():
        is_block_matrix = ".layers." in name and parameter.ndim == 2
        assert (id(parameter) in in_muon) == is_block_matrix, name
        assert (id(parameter) in in_adamw) != is_block_matrix, name


def test_groups_are_drawn_by_the_root_of_their_size():
    groups = [numbers_group(np.arange(1, 1 + n), [n % 5, 11]) for n in (4, 100)]
    batches = LatencyBatches(groups, TrainConfig())
    assert batches.weights == pytest.approx([2 / 12, 10 / 12])


def test_a_step_fills_its_rows_from_several_small_kernels():
    small = [numbers_group(np.arange(1, 9), [k, 11]) for k in range(8)]
    large = [numbers_group(np.arange(1, 400), [k, 11]) for k in (0, 0, 0, 0)]
    config = TrainConfig(rows=60, groups=3)
    rng = np.random.default_rng(0)
    assert [part.rows for part in LatencyBatches(small, config).step(rng)] == [8] * 4  # `kernels` bounds it
    assert [part.rows for part in LatencyBatches(large, config).step(rng)] == [20] * 3


def test_dropped_tokens_are_read_as_padding():
    batches = LatencyBatches([numbers_group(np.arange(1, 9), [11, 12])], TrainConfig(token_dropout=0.25))
    thinned = batches._thinned([5] * 4000, np.random.default_rng(0))
    assert (thinned == PAD).float().mean().item() == pytest.approx(0.25, abs=0.03)
    assert set(thinned.tolist()) == {5, PAD}


def test_a_broken_checkpoint_and_bad_options_get_one_line(tmp_path):
    group = numbers_group(np.arange(1, 9), [11, 12])
    (tmp_path / "latency-0.safetensors").write_bytes(b"nonsense")
    with pytest.raises(UserError, match="training checkpoint"):
        train([group], TrainConfig(steps=1), members=tiny(), checkpoints=tmp_path)
    with pytest.raises(UserError, match="latency, next-token"):
        TrainConfig(objective="speed")
    with pytest.raises(UserError, match="steps=0"):
        TrainConfig(steps=0)
    with pytest.raises(UserError, match="not finite"):
        Group([1], [[1]], [[1]], np.array([np.nan]), np.array([False]))
    with pytest.raises(UserError, match="objective"):
        train([[1, 2]], TrainConfig(), members=tiny())


def test_training_state_survives_a_file(tmp_path):
    tensors = {"a": torch.randn(3), "optimizer.0.0.b": torch.arange(2.0)}
    checkpoint.save_training(tmp_path / "x.safetensors", tensors, {"step": 3})
    got, state = checkpoint.load_training(tmp_path / "x.safetensors")
    assert state == {"step": 3}
    assert got.keys() == tensors.keys()
    assert all(torch.equal(got[k], tensors[k]) for k in got)
