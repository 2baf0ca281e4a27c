"""Heads that write digits: regression-aware losses against their definition, every codec, and what is said in JSON."""

import itertools
import json
import math

import pytest
import torch
from transformers import GPT2Config, MistralConfig, Qwen3Config

from costmodel.codecs import codec_from
from costmodel.codecs.digits import IEEE, P10, FixedPoint, Normalized
from costmodel.codecs.grids import LinearGrid, LogGrid, QuantileGrid
from costmodel.codecs.repeated import Repeated
from costmodel.codecs.spread import LEAST, MOST, half_unit, read, spread, written
from costmodel.model import decode, decoder, losses
from costmodel.model.digit_head import DigitHead
from costmodel.model.losses import Targets, rank_loss
from costmodel.records import UserError

torch.set_num_threads(1)

VOCAB, WIDTH = 61, 32
CONFIGS = {
    "llama": decoder.small_config(VOCAB, hidden_size=WIDTH, layers=2, heads=4),
    "grouped": Qwen3Config(
        vocab_size=VOCAB, hidden_size=WIDTH, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, tie_word_embeddings=True,
    ),
    "gpt2": GPT2Config(vocab_size=VOCAB, n_embd=WIDTH, n_layer=2, n_head=4, attn_pdrop=0, embd_pdrop=0, resid_pdrop=0),
    "windowed": MistralConfig(
        vocab_size=VOCAB, hidden_size=WIDTH, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, sliding_window=8,
    ),
}  # fmt: skip
CODECS = {
    "p10": P10(mantissa_digits=3),
    "p10 signed": P10(mantissa_digits=2, min_exponent=-3, max_exponent=2, domain="log2"),
    "p10 merged": P10(mantissa_digits=2, layout="merged"),
    "p10 exponent first": P10(mantissa_digits=2, min_exponent=-3, max_exponent=2, layout="exponent_first"),
    "ieee": IEEE(mantissa_digits=3),
    "ieee base 2": IEEE(base=2, exponent_digits=3, mantissa_digits=5),
    "ieee signed": IEEE(mantissa_digits=2, domain="log2"),
    "normalized": Normalized(low=-2.0, high=4.0, digits=5),
    "normalized base 50": Normalized(low=-2.0, high=4.0, base=50, digits=2),
    "fixed-point": FixedPoint(),
    "repeated": Repeated(Normalized(low=-2.0, high=4.0, digits=4), times=3),
    "repeated p10": Repeated(P10(mantissa_digits=2, min_exponent=-3, max_exponent=2), times=2),
}
EVERY_CODEC = {
    **CODECS,
    "log grid": LogGrid(),
    "linear": LinearGrid(low=0, high=1),
    "quantile": QuantileGrid(edges=[0, 1, 3]),
}
Z = [0.7, -1.9, 3.1, 0.0]


def case(codec, loss="ce", *, config="llama", seed=0, **options):
    backbone = decoder.build(CONFIGS[config], seed=seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if loss != "ce" and "grid_values" not in options:
            options |= {"z_low": -2.0, "z_high": 4.0}
        head = DigitHead(WIDTH, codec, loss=loss, **options)
        torch.nn.init.normal_(head.tokens.weight, std=0.3)
    ids, lengths = decoder.pad([[3, 1, 4], [1, 5], [9, 2, 6, 5], [3]])  # ragged
    return backbone, head, torch.arange(20) % VOCAB, ids, lengths


def targets(z, failed=(), rank_only=()):
    def marked(rows):
        return torch.tensor([i in rows for i in range(len(z))])

    return Targets(torch.tensor(z), marked(failed), marked(rank_only))


def gradients(loss, backbone, head):
    parameters = [*head.parameters(), *backbone.base_model.parameters()]
    return torch.autograd.grad(loss, parameters, allow_unused=True)


def one_by_one(backbone, head, prefix_ids, suffix, strings):
    """Log-probability of each string given success: one whole sequence a string, nothing shared."""
    start = backbone.get_input_embeddings()(torch.cat([prefix_ids, suffix]))
    told = []
    for string in strings:
        embeddings = torch.cat([start, head.tokens(torch.tensor(string[:-1], dtype=torch.long))])
        hidden = backbone.base_model(inputs_embeds=embeddings[None]).last_hidden_state[0, len(start) - 1 :]
        state, log_p = 0, 0.0
        for token, row in zip(string, hidden @ head.tokens.weight.t(), strict=True):
            log_p = log_p + row.masked_fill(~head.given_success[state], -math.inf).log_softmax(-1)[token]
            state = int(head.next_state[state, token])
        told.append(log_p)
    return torch.stack(told)


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("name", ["p10", "p10 exponent first", "ieee base 2", "normalized", "repeated"])
def test_raft_over_a_trie_equals_scoring_each_string_by_itself(name, config):
    codec = CODECS[name]
    values = [-1.95, -1.0, 0.5, 1.0, 3.9]
    backbone, head, prefix_ids, ids, lengths = case(codec, "raft", config=config, grid_values=values)
    first = codec.codec.num_tokens if isinstance(codec, Repeated) else codec.num_tokens
    strings = [codec.encode(written(codec, z))[:first] for z in values]
    said = torch.tensor([read(codec, codec.encode(written(codec, z))) for z in values])
    assert torch.allclose(head.grid, said)
    log_p = torch.stack(
        [one_by_one(backbone, head, prefix_ids, s[:n], strings) for s, n in zip(ids, lengths, strict=True)]
    )
    naive = (log_p.softmax(-1) @ said - torch.tensor(Z)).square().mean()
    want = gradients(naive, backbone, head)
    prefix = decoder.encode_prefix(backbone, prefix_ids)
    _, at_trie = head._tree(backbone, prefix, decoder.embedded(backbone, ids), lengths, None)
    parts = head._grid_terms(at_trie, targets(Z))
    assert parts["raft"].item() == pytest.approx(naive.item(), rel=1e-5)
    for got, wanted in zip(gradients(parts["raft"], backbone, head), want, strict=True):
        assert (got is None) == (wanted is None)
        if got is not None:
            assert (got - wanted).abs().max() <= 1e-5 * max(1.0, wanted.abs().max())


def test_every_term_is_its_definition_and_cross_entropy_is_what_it_is_alone():
    loss = "ce+raft+raft-raw+raft-relative+raft-unnormalized+pairwise+listwise"
    backbone, head, prefix_ids, ids, lengths = case(CODECS["p10"], loss, z_var=2.0, raw_var=3.0)
    prefix = decoder.encode_prefix(backbone, prefix_ids)
    taught = targets(Z, failed={1}, rank_only={3})
    total, parts = head.loss(backbone, prefix, ids, lengths, taught)
    assert set(parts) == set(loss.split("+"))
    strings = [head.codec.encode(written(head.codec, z)) for z in head.grid.tolist()]
    rows = [one_by_one(backbone, head, prefix_ids, s[:n], strings) for s, n in zip(ids, lengths, strict=True)]
    log_p = torch.stack(rows).double()
    p, grid, y = log_p.softmax(-1), head.grid.double(), torch.tensor([0.7, 3.1], dtype=torch.float64)
    some = [0, 2]
    want = {
        "raft": ((p @ grid)[some] - y).square().mean() / 2,
        "raft-unnormalized": ((log_p.exp() @ grid)[some] - y).square().mean() / 2,
        "raft-raw": ((p @ grid.exp2())[some] - y.exp2()).square().mean() / 3,
        "raft-relative": ((p @ grid.exp2())[some] / y.exp2() - 1).square().mean(),
        "pairwise": rank_loss((p @ grid)[[0, 2, 3]].float(), torch.tensor([0.7, 3.1, 0.0])),
    }
    for name, value in want.items():
        assert parts[name].item() == pytest.approx(value.item(), rel=1e-4), name
    alone = DigitHead(WIDTH, head.codec)
    alone.load_state_dict(head.state_dict())
    ce, _ = alone.loss(backbone, prefix, ids, lengths, taught)
    assert parts["ce"].item() == pytest.approx(ce.item(), rel=1e-5)
    ranks = parts["pairwise"] + parts["listwise"]
    rest = sum(value for name, value in parts.items() if name not in ("pairwise", "listwise"))
    assert total.item() == pytest.approx((rest + 0.5 * ranks).item(), rel=1e-5)


def test_without_cross_entropy_failures_are_told_by_their_own_probability():
    backbone, head, prefix_ids, ids, lengths = case(CODECS["p10"], "raft")
    prefix = decoder.encode_prefix(backbone, prefix_ids)
    _, parts = head.loss(backbone, prefix, ids, lengths, targets([math.nan, *Z[1:]], failed={0}))
    p_fail = head.distribution(backbone, prefix, ids, lengths).p_fail
    want = -(p_fail[0].log() + (1 - p_fail[1:]).log().sum()) / 4
    assert parts["ce"].item() == pytest.approx(want.item(), rel=1e-5)


@pytest.mark.parametrize("loss", ["ce", "raft", "ce+raft-relative+pairwise"])
def test_rows_of_nothing_but_failures_or_searches_have_a_finite_gradient(loss):
    backbone, head, prefix_ids, ids, lengths = case(CODECS["p10"], loss)
    everything = {0, 1, 2, 3}
    for marked in ({"failed": everything}, {"rank_only": everything}, {"failed": everything, "rank_only": {0}}):
        prefix = decoder.encode_prefix(backbone, prefix_ids)
        z = [math.nan] * 4 if "failed" in marked else Z
        total, _ = head.loss(backbone, prefix, ids, lengths, targets(z, **marked))
        grads = gradients(total, backbone, head)
        assert math.isfinite(total.item())
        assert all(torch.isfinite(g).all() for g in grads if g is not None)


def test_a_grid_that_does_not_hold_the_targets_says_which_one_lies_outside():
    backbone, head, prefix_ids, ids, lengths = case(CODECS["p10"], "ce+raft", grid_values=[0.0, 1.0, 2.0])
    prefix = decoder.encode_prefix(backbone, prefix_ids)
    with pytest.raises(UserError, match=r"target of 2\.5 .* expected -0\.0\d+ to 2\.0\d*,"):
        head.loss(backbone, prefix, ids, lengths, targets([0.3, 2.5, 1.0, 0.0]))
    head.loss(backbone, prefix, ids, lengths, targets([0.3, 2.5, 1.0, 9.0], failed={1}, rank_only={3}))  # not regressed
    with torch.no_grad():  # a held-out value may lie outside: that is an error of the prediction, not of the user
        head.loss(backbone, prefix, ids, lengths, targets([0.3, 2.5, 1.0, 0.0]))
    with pytest.raises(UserError, match="expected z_low and z_high, or grid_values"):
        DigitHead(WIDTH, P10(), loss="raft")
    with pytest.raises(UserError, match=r"slowdown of 2\*\*-40, which P10 writes as 0"):
        head.loss(backbone, prefix, ids, lengths, targets([0.3, -40.0, 1.0, 0.0]))
    with pytest.raises(UserError, match="up to -40 in log2 units, which P10 writes as 0"):
        DigitHead(WIDTH, P10(), loss="raft", z_low=-50.0, z_high=-40.0)
    with pytest.raises(UserError, match="got loss term 'sampled'"):
        DigitHead(WIDTH, P10(), loss="ce+sampled")


@pytest.mark.parametrize("name", EVERY_CODEC)
@pytest.mark.parametrize(("low", "high"), [(-1.0, 3.0), (0.25, 0.5), (1.0, 1.0)])
def test_the_grid_spans_the_training_values(name, low, high):
    codec = EVERY_CODEC[name]
    values = spread(codec, low, high)
    assert values == sorted(set(values))
    assert len(values) <= MOST + 2
    assert all(read(codec, codec.encode(written(codec, z))) == pytest.approx(z, abs=1e-9) for z in values)
    ends = [read(codec, codec.encode(written(codec, z))) for z in (low, high)]
    assert values[0] - 1e-9 <= ends[0]  # it begins with what the codec makes of the ends, or beyond
    assert values[-1] + 1e-9 >= ends[1]
    if (low, high) == (-1.0, 3.0) and name in ("p10", "fixed-point", "ieee base 2", "log grid"):
        assert len(values) >= LEAST
        assert max(b - a for a, b in itertools.pairwise(values)) < 1.05


def test_half_a_unit():
    assert half_unit(FixedPoint(), 1.0, 5.0) == pytest.approx(0.005)
    assert half_unit(Normalized(low=0.0, high=8.0, base=2, digits=3), 0.5, 7.0) == pytest.approx(0.5)
    assert 2 ** half_unit(P10(), 0.0, 1.0) == pytest.approx(1.0005)
    assert half_unit(P10(), 1.0, 1.0) == 0


@pytest.mark.parametrize("name", CODECS)
def test_every_codec_learns_says_and_draws(name):
    """Losses are finite, the distribution is whole, samples are the grammar's, and gradients reach the tokens."""
    codec = CODECS[name]
    backbone, head, prefix_ids, ids, lengths = case(codec, "ce+raft+pairwise")
    total, parts = head.loss(
        backbone, decoder.encode_prefix(backbone, prefix_ids), ids, lengths, targets(Z, failed={3})
    )
    assert all(math.isfinite(value) for value in parts.values())
    total.backward()
    assert torch.isfinite(head.tokens.weight.grad).all()
    with torch.no_grad():
        place = backbone, decoder.encode_prefix(backbone, prefix_ids), ids, lengths
        told = head.distribution(*place)
        assert torch.allclose(told.weights.sum(-1), torch.ones(4, dtype=torch.float64))
        assert torch.isfinite(told.support).all()
        assert (told.own.sum(-1) <= 1 + 1e-9).all()
        drawn = head.sample(*place, decode.stratified(32).expand(4, -1))
        assert drawn.dtype == torch.float64
        for z in drawn.flatten().tolist():
            assert read(codec, codec.encode(written(codec, z))) == pytest.approx(z, abs=1e-9)
        best = head.beam(*place, width=4)
        assert (head.log_probability(*place, best[:, None]) < 0).all()


@pytest.mark.parametrize("domain", ["linear", "log2"])
@pytest.mark.parametrize("make", [
    lambda **kw: P10(mantissa_digits=1, min_exponent=-1, max_exponent=1, **kw),
    lambda **kw: P10(mantissa_digits=2, min_exponent=-1, max_exponent=1, layout="exponent_first", **kw),
    lambda **kw: P10(mantissa_digits=1, min_exponent=-1, max_exponent=1, layout="merged", **kw),
    lambda **kw: IEEE(base=3, mantissa_digits=2, **kw),
])  # fmt: skip
def test_a_slowdown_is_any_positive_number_and_z_any_number(make, domain):
    """Of all strings of the grammar, those that a head may write are the ones of its domain: no fewer, no more."""
    codec = make(domain=domain, specials=("failed", "unmeasured"))
    head = DigitHead(WIDTH, codec)
    strings = [[]]
    for _ in range(codec.num_tokens):
        strings = [[*s, token] for s in strings for token in codec.allowed_next(s)]
    for s in strings:
        state, allowed = 0, True
        for token in s:
            allowed &= bool(head.given_success[state, token])
            state = int(head.next_state[state, token])
        value = codec.decode(s)
        assert allowed == (value > 0 or (domain == "log2" and not math.isnan(value))), s
    assert any(codec.decode(s) < 0 for s in strings)


def test_features_can_take_the_place_of_text():
    """Embeddings (M, L, D) as suffixes: the same answers as for the tokens that they are the embeddings of."""
    backbone, head, prefix_ids, ids, lengths = case(CODECS["p10 signed"], "ce+raft")
    prefix = decoder.encode_prefix(backbone, prefix_ids)
    features = backbone.get_input_embeddings()(ids).detach()
    uniforms = decode.stratified(16).expand(4, -1)
    for method, extra in ((head.loss, targets(Z)), (head.sample, uniforms)):
        got, want = (method(backbone, prefix, x, lengths, extra) for x in (features, ids))
        got, want = (x[0] if method == head.loss else x for x in (got, want))
        assert torch.equal(got, want)
    got, want = (head.distribution(backbone, prefix, x, lengths).mean() for x in (features, ids))
    assert torch.equal(got, want)
    features.requires_grad_()
    head.loss(backbone, prefix, features, lengths, targets(Z))[0].backward()
    assert features.grad[1, :2].abs().sum() > 0  # gradients reach what made the features, at real tokens alone
    assert features.grad[1, 2:].abs().sum() == 0


@pytest.mark.parametrize("name", EVERY_CODEC)
def test_a_codec_and_a_head_are_rebuilt_from_json(name):
    codec = EVERY_CODEC[name]
    again = codec_from(type(codec).__name__, json.loads(json.dumps(codec.options())))
    assert (again.options(), again.domain, again.vocabulary) == (codec.options(), codec.domain, codec.vocabulary)
    assert again.encode(0.3) == codec.encode(0.3)
    if name in CODECS:
        head = DigitHead(WIDTH, codec, loss="ce+raft", z_low=-1.0, z_high=3.0, z_var=2.5)
        spec = json.loads(json.dumps(head.spec()))
        rebuilt = DigitHead.from_spec(WIDTH, spec)
        assert rebuilt.spec() == spec
        assert torch.equal(rebuilt.grid, head.grid)
        assert rebuilt.covers == head.covers
        assert rebuilt.trie.parents == head.trie.parents


def test_old_heads_are_read_and_unknown_ones_refused():
    old = {"kind": "p10", "mantissa_digits": 2, "min_exponent": -2, "max_exponent": 0}
    head = DigitHead.from_spec(WIDTH, old)
    assert head.terms == ("ce",)
    assert head.codec.options() == P10(mantissa_digits=2, min_exponent=-2, max_exponent=0).options()
    with pytest.raises(UserError, match=r"got codec 'P11', expected one of P10, IEEE, .*Repeated"):
        codec_from("P11", {})
    with pytest.raises(UserError, match=r"expected its keywords .*digits_of_mantissa"):
        codec_from("P10", {"digits_of_mantissa": 3})
    with pytest.raises(UserError, match="expected its keywords"):
        codec_from("Repeated", {"times": 3})
    with pytest.raises(UserError, match="got domain='log', expected one of linear, log2"):
        P10(domain="log")


def test_a_head_without_cross_entropy_answers_with_what_it_was_taught():
    for name in ("raft", "raft-unnormalized"):
        backbone, head, prefix_ids, ids, lengths = case(CODECS["p10 exponent first"], name)
        prefix = decoder.encode_prefix(backbone, prefix_ids)
        told = head.distribution(backbone, prefix, ids, lengths)
        parts = head.loss(backbone, prefix, ids, lengths, targets(Z))[1]
        assert (told.mean() - torch.tensor(Z)).square().mean().item() == pytest.approx(parts[name].item(), rel=1e-5)
        assert (told.support.diff(dim=-1) >= 0).all()
        assert torch.allclose(told.weights.sum(-1), torch.ones(4, dtype=torch.float64))
        place = backbone, prefix, ids, lengths
        strings = {"sample": [decode.stratified(4).expand(4, -1)], "beam": [], "log_probability": [torch.zeros(4, 1)]}
        for wants_strings, of in strings.items():
            with pytest.raises(UserError, match="expected a head taught with ce to sample from"):
                getattr(head, wants_strings)(*place, *of)


def test_every_raft_term_is_learned():
    """A few steps on four rows bring every term down by half."""
    for name in losses.RAFT_TERMS:
        backbone, head, prefix_ids, ids, lengths = case(CODECS["normalized"], name)
        optimizer = torch.optim.Adam([*head.parameters(), *backbone.parameters()], lr=2e-3)
        seen = []
        for _ in range(40):
            prefix = decoder.encode_prefix(backbone, prefix_ids)
            loss, parts = head.loss(backbone, prefix, ids, lengths, targets(Z))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            seen.append(parts[name].item())
        assert min(seen) < seen[0] / 2, name
