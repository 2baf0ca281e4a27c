"""What google-deepmind/regress-lm (f85730d) gets wrong, one test each: that this library does not.

Number tokenizers and decoding first, then text, training and files; docs/numbers.md has the comparison itself.
"""

import math
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch

from costmodel.codecs.digits import IEEE, P10, FixedPoint, Normalized
from costmodel.codecs.grammar import Grammar
from costmodel.codecs.grids import LogGrid
from costmodel.codecs.repeated import Repeated
from costmodel.model import checkpoint, decode, decoder
from costmodel.model.digit_head import DigitHead
from costmodel.model.losses import Targets
from costmodel.predictor import NeuralCostModel
from costmodel.recipe import Recipe
from costmodel.records import Prompt, UserError
from costmodel.tokens import TextTokenizer
from costmodel.train import Group, TrainConfig, fresh_members, train

torch.set_num_threads(1)

EVERY_CODEC = [
    P10(), P10(layout="merged", mantissa_digits=3), P10(layout="exponent_first"), IEEE(),
    IEEE(base=2, exponent_digits=3), Normalized(low=-6.0, high=14.0), FixedPoint(), LogGrid(),
    Repeated(P10(mantissa_digits=2)),
]  # fmt: skip


def writing(codec, **options):
    """A head far from uniform, and where it writes: a prefix of 40 tokens and two suffixes."""
    backbone = decoder.build(decoder.small_config(61, hidden_size=32, layers=2, heads=4), seed=0)
    head = DigitHead(32, codec, **options)
    torch.nn.init.normal_(head.tokens.weight, std=0.4, generator=torch.Generator().manual_seed(0))
    return head, (backbone, decoder.encode_prefix(backbone, torch.arange(40)), *decoder.pad([[3, 1, 4], [1, 5]]))


def targets(z):
    no = torch.zeros(len(z), dtype=torch.bool)
    return Targets(torch.tensor(z), no, no)


def test_the_mask_is_computed_in_python_for_every_sample_and_step(monkeypatch):
    """Ours is a table on the device: training, sampling and exact distributions never ask which token may follow."""
    asked = []
    monkeypatch.setattr(Grammar, "allowed_next", lambda *_: asked.append(1) or ())
    for codec in (P10(mantissa_digits=2), Repeated(Normalized(low=-2.0, high=6.0), times=2)):
        head, place = writing(codec, loss="ce+raft", z_low=-1.0, z_high=4.0)
        head.loss(*place, targets([0.3, 2.0]))
        with torch.no_grad():
            head.sample(*place, decode.stratified(500).expand(2, -1))
            head.distribution(*place)
    assert not asked


@pytest.mark.parametrize("loss", ["raft", "ce+raft"])
def test_raft_encodes_the_input_once_per_grid_point(loss, monkeypatch):
    """Ours reads the input once, then every string of the grid in one pass over what they do not have in common."""
    head, place = writing(P10(), loss=loss, z_low=-1.0, z_high=6.0)
    backbone, calls, tokens = place[0], [], []
    run = decoder._run

    def counted(*args, **inputs):
        calls.append(1)
        tokens.append(inputs["inputs_embeds"].shape[:2].numel())
        return run(*args, **inputs)

    monkeypatch.setattr(decoder, "_run", counted)
    prefix = decoder.encode_prefix(backbone, torch.arange(40))
    head.loss(backbone, prefix, *place[2:], targets([0.3, 2.0]))
    grid, own = len(head.grid), 0 if loss == "raft" else head.codec.num_tokens - 1
    assert grid >= 12
    assert len(calls) == 2  # the prefix, and all strings of all suffixes
    assert tokens == [40, 2 * (3 + own + len(head.trie.parents))]
    assert len(head.trie.parents) < grid * (head.codec.num_tokens - 1) / 2


@pytest.mark.parametrize("codec", [P10(), IEEE(), P10(layout="exponent_first")])
def test_ieee_truncates_instead_of_rounding(codec):
    values = 10 ** np.random.default_rng(0).uniform(-6, 6, 20000)
    read = np.array([codec.decode(codec.encode(value)) for value in values])
    unit = 10.0 ** (np.floor(np.log10(values)) - 3)
    assert abs((read / values - 1).mean()) < 1e-5  # theirs: -2.0e-4
    assert (np.abs(read - values) <= unit / 2 * (1 + 1e-9)).all()
    assert codec.decode(codec.encode(1.9999)) == 2.0  # theirs: 1.999


def test_normalized_returns_the_edge_of_the_bin_and_knows_no_base_above_36():
    for base, digits in ((2, 8), (10, 3), (50, 2), (1000, 1)):
        codec = Normalized(low=0.0, high=1.0, base=base, digits=digits)
        width = base**-digits
        assert codec.decode(codec.encode(1.0)) == pytest.approx(1 - width / 2)
        values = np.random.default_rng(0).uniform(0, 1, 5000)
        errors = np.array([codec.decode(codec.encode(value)) for value in values]) - values
        assert np.abs(errors).max() <= width / 2 * (1 + 1e-9)
        assert abs(errors.mean()) < 5 * width / 12**0.5 / 5000**0.5  # no bias: five standard errors


@pytest.mark.parametrize("codec", [
    P10(mantissa_digits=2), P10(mantissa_digits=2, layout="merged"), P10(mantissa_digits=2, layout="exponent_first"),
    IEEE(mantissa_digits=2), IEEE(base=3, mantissa_digits=2), Normalized(low=0.0, high=1.0),
    FixedPoint(integer_digits=1, fraction_digits=1),
])  # fmt: skip
def test_one_number_has_several_token_strings(codec):
    """Theirs has up to 40 strings for a value of two digits. Ours has as many strings as it has values."""
    ways = np.zeros(len(codec.mask), dtype=object)  # from each state to the end, by the grammar alone
    ways[-1] = 1
    for state in reversed(range(len(codec.mask) - 1)):
        ways[state] = ways[codec.next_state[state][codec.mask[state]]].sum()
    strings = [[]]
    for _ in range(codec.num_tokens):
        strings = [[*s, token] for s in strings for token in codec.allowed_next(s)]
    values = {codec.decode(s) for s in strings if codec.special(s) is None}
    assert len(values) + len(codec.specials) == len(strings) == ways[0]


@torch.no_grad()
@pytest.mark.parametrize(
    "codec", [P10(mantissa_digits=2, min_exponent=-2, max_exponent=0), IEEE(base=3, mantissa_digits=2)]
)
def test_log_prob_is_not_of_the_distribution_that_is_sampled_from(codec):
    """Theirs gives all valid strings 0.04 in sum. Ours gives them 1, and each what samples show."""
    head, place = writing(codec)
    strings = [[]]
    for _ in range(codec.num_tokens):
        strings = [[*s, token] for s in strings for token in codec.allowed_next(s)]
    z = torch.tensor([sorted(math.log2(v) for v in map(codec.decode, strings) if v > 0)] * 2, dtype=torch.float64)
    p = head.log_probability(*place, z).exp()
    assert p.sum(-1).tolist() == pytest.approx([1, 1], abs=1e-6)
    drawn = head.sample(*place, decode.stratified(4000).expand(2, -1))
    seen = (drawn[:, :, None] == z[:, None, :]).double().mean(1)
    assert (seen - p).abs().max() < 1e-3


@pytest.mark.parametrize("codec", EVERY_CODEC)
def test_special_values_are_advertised_and_raise_and_infinity_becomes_a_number(codec):
    said = codec.encode_special("failed")
    assert codec.special(said) == "failed"
    assert math.isnan(codec.decode(said))
    with pytest.raises(UserError, match="expected one of failed"):
        codec.encode_special("INVALID")
    for value in (math.nan, math.inf, -math.inf):
        with pytest.raises(ValueError, match="expected a finite number") as told:
            codec.encode(value)
        assert "\n" not in str(told.value)


@torch.no_grad()
def test_samples_have_no_seed_no_temperature_no_chunks_and_come_as_objects():
    head, place = writing(P10())
    first, again, other = (head.sample(*place, decode.stratified(64, seed=seed).expand(2, -1)) for seed in (1, 1, 2))
    assert first.dtype == torch.float64
    assert first.shape == (2, 64)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    cold, hot = (
        head.sample(*place, decode.stratified(512).expand(2, -1), temperature=temperature)
        for temperature in (0.05, 5.0)
    )
    assert len(cold[0].unique()) < len(first[0].unique())
    assert len(hot[0].unique()) > 300
    writer, (root, _) = head._writer(place[0]), next(head._roots(*place))
    uniforms = torch.rand(300, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(decode.sample(writer, root, uniforms), decode.sample(writer, root, uniforms, chunk=50))


@torch.no_grad()
def test_every_one_of_a_hundred_thousand_hot_samples_is_a_number():
    codec = P10(mantissa_digits=3, min_exponent=-6, max_exponent=6)
    head, place = writing(codec)
    writer, (root, _) = head._writer(place[0]), next(head._roots(*place))
    strings = decode.sample(writer, root, decode.stratified(100_000), temperature=5.0)
    assert strings.shape == (100_000, 5)
    distinct = strings.unique(dim=0).tolist()
    assert len(distinct) > 5000
    assert all(codec.encode(codec.decode(string)) == string for string in distinct)  # else decode raises


def test_cross_entropy_grows_with_the_batch():
    """Their z-loss is a sum where the cross-entropy is a mean. Our terms are means, whatever the number of rows."""
    head, (backbone, prefix, ids, lengths) = writing(P10(), loss="ce+raft+raft-relative", z_low=-1.0, z_high=4.0)
    _, once = head.loss(backbone, prefix, ids, lengths, targets([0.3, 2.0]))
    _, twice = head.loss(backbone, prefix, ids.repeat(2, 1), lengths.repeat(2), targets([0.3, 2.0] * 2))
    for name, value in once.items():
        assert twice[name].item() == pytest.approx(value.item(), rel=1e-5)


# ---- text, training, files


def rows_through(backbone, monkeypatch):
    """A list that collects (rows, tokens) of every pass through the layers of a backbone."""
    passes, forward = [], backbone.base_model.forward

    def counted(*args, **inputs):
        shape = (inputs["inputs_embeds"] if "inputs_embeds" in inputs else inputs["input_ids"]).shape
        passes.append((shape[0], shape[1]))
        return forward(*args, **inputs)

    monkeypatch.setattr(backbone.base_model, "forward", counted)
    return passes


def test_every_input_is_padded_to_the_longest_that_is_allowed(monkeypatch):
    members = fresh_members(
        decoder.small_config(61, hidden_size=32, layers=1, heads=4), lambda d: DigitHead(d, FixedPoint()), seeds=[0]
    )
    passes = rows_through(members[0].backbone, monkeypatch)
    group = Group([1, 2, 3], [[4, 5]], [[6, 7], [8]] * 8, np.zeros(16), np.zeros(16, dtype=bool))
    train([group], TrainConfig(steps=1, rows=16, warmup_steps=1), members=members, quiet=True)
    number = FixedPoint().num_tokens - 1  # the last token is read out and not put in
    assert sum(rows * tokens for rows, tokens in passes) == 3 + 2 + 16 * (2 + number)


@torch.no_grad()
def test_no_keys_are_kept_and_every_sample_encodes_its_input_anew(monkeypatch):
    head, place = writing(Normalized(low=-6.0, high=14.0))
    passes = rows_through(place[0], monkeypatch)
    head.sample(*place, decode.stratified(128).expand(2, -1))
    assert max(tokens for _, tokens in passes) <= 3  # a suffix; the prefix of 40 was encoded before, once
    distinct = 2 * (2**8 - 1)  # strings of the two inputs, at most: 128 samples x 8 tokens are 2,048
    assert sum(rows * tokens for rows, tokens in passes) <= distinct + 2 * 3


def test_the_core_install_does_not_import():
    extras = ("peft", "sentencepiece", "lightgbm", "xgboost", "kernel_tuner", "optuna", "jax", "helion", "sqlalchemy")
    code = f"""
        import sys
        sys.modules |= dict.fromkeys({extras!r})  # as if they were not installed
        from costmodel.predictor import NeuralCostModel
        import costmodel.search, costmodel.recipe, costmodel.ablation, costmodel.tabular
        NeuralCostModel.from_pretrained()
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("call", [Recipe, TrainConfig, P10, NeuralCostModel, lambda **o: DigitHead(32, P10(), **o)])
def test_an_option_that_does_not_exist_is_accepted(call):
    with pytest.raises(TypeError, match="unexpected keyword argument 'no_such_option'"):
        call(no_such_option=1)


def test_what_is_reported_of_an_epoch_is_never_the_best():
    """Theirs compares with the best after it has become the best. Ours reports losses: those that the weights had."""
    members = fresh_members(
        decoder.small_config(61, hidden_size=32, layers=1, heads=4), lambda d: DigitHead(d, FixedPoint()), seeds=[0]
    )
    member = members[0]
    group = Group([1, 2, 3], [[4, 5]], [[6], [7]], np.array([0.5, 1.0]), np.zeros(2, dtype=bool))
    prefix = decoder.encode_prefix(member.backbone, torch.tensor([1, 2, 3, 4, 5]))
    by_hand, _ = member.head.loss(member.backbone, prefix, *decoder.pad([[6], [7]]), targets([0.5, 1.0]))
    summary = train([group], TrainConfig(steps=1, rows=2, token_dropout=0.0), members=members, quiet=True)
    assert summary.losses[0]["loss"] == pytest.approx(by_hand.item(), rel=1e-5)


def test_a_checkpoint_shares_its_memory_with_weights_that_go_on_changing(tmp_path):
    weights = {"w": torch.arange(4.0)}
    checkpoint.save_training(tmp_path / "a.safetensors", weights, {"step": 1})
    weights["w"] += 1
    stored, state = checkpoint.load_training(tmp_path / "a.safetensors")
    assert stored["w"].tolist() == [0, 1, 2, 3]
    assert state == {"step": 1}


def test_a_number_out_of_the_vocabulary_is_unknown():
    tokenizer = TextTokenizer.train([Prompt("f()", "gpu", "n=64", ("lr=0.1",))], vocab_size=600)
    texts = ["{lr:0.1}", "{lr:0.9}", "{lr:0.91}", "\u00e9\u4e2d\U0001f680 \x00"]
    ids = [tuple(tokenizer.encode(text)) for text in texts]
    assert len(set(ids)) == len(texts)
    assert not any("unk" in token for token in map(str.lower, tokenizer._tokenizer.get_vocab()))
    known, unseen, other = (
        tokenizer.encode_suffix(Prompt("f()", "gpu", "n=64", (setting,))) for setting in ("lr=0.1", "lr=0.9", "lr=0.8")
    )
    assert len({tuple(known), tuple(unseen), tuple(other)}) == 3


def test_the_default_batch_is_the_whole_training_set(monkeypatch):
    members = fresh_members(
        decoder.small_config(61, hidden_size=32, layers=1, heads=4), lambda d: DigitHead(d, FixedPoint()), seeds=[0]
    )
    passes = rows_through(members[0].backbone, monkeypatch)
    many = 5000
    group = Group([1], [[4]], [[6]] * many, np.zeros(many), np.zeros(many, dtype=bool))
    train([group], TrainConfig(steps=1), members=members, quiet=True)
    assert max(rows for rows, _ in passes) == TrainConfig().rows < many


def test_a_trained_vocabulary_is_written_where_the_next_one_overwrites_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    first = TextTokenizer.train(["alpha beta alpha"], vocab_size=400)
    second = TextTokenizer.train(["gamma delta gamma"], vocab_size=400)
    assert not list(tmp_path.iterdir())
    first.save(tmp_path / "first.json")
    again = TextTokenizer.load(tmp_path / "first.json")
    again.save(tmp_path / "second.json")
    assert (tmp_path / "first.json").read_text() == (tmp_path / "second.json").read_text()
    assert again.encode("alpha") == first.encode("alpha") != second.encode("alpha")


def test_y_equals_x_is_never_learned():
    """Their issue 57: y = x on integers as text, and every prediction the mean."""
    numbers = np.random.default_rng(0).permutation(np.arange(1, 500))
    suffixes = [[*map(int, f"{n:03d}"), 10] for n in numbers]
    members = fresh_members(
        decoder.small_config(16, hidden_size=32, layers=2, heads=2), lambda d: DigitHead(d, P10(mantissa_digits=2)),
        seeds=[0],
    )  # fmt: skip
    none = np.zeros(len(numbers), dtype=bool)
    group = Group([11], [[12]], suffixes[:400], np.log2(numbers[:400]), none[:400])
    train([group], TrainConfig(steps=150, token_dropout=0.0), members=members, quiet=True)
    backbone, head = members[0].backbone, members[0].head
    with torch.no_grad():
        prefix = decoder.encode_prefix(backbone, torch.tensor([11, 12]))
        told = head.distribution(backbone, prefix, *decoder.pad(suffixes[400:440])).quantile(0.5).exp2().numpy()
    assert np.median(np.abs(told / numbers[400:440] - 1)) < 0.15
