"""The model against its definition: the naive forward pass over whole sequences, one row at a time."""

import math

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, MistralConfig, Qwen3Config

from costmodel.codecs.digits import P10
from costmodel.codecs.grids import LogGrid
from costmodel.model import checkpoint, decode, decoder
from costmodel.model.digit_head import DigitHead
from costmodel.model.grid_head import GridHead
from costmodel.model.losses import Targets, rank_loss
from costmodel.ops.numeric_rows import Bins, gaussian_mass
from costmodel.records import UserError
from costmodel.tokens import TextTokenizer

torch.set_num_threads(1)

VOCAB = 400
CONFIGS = {
    "llama": decoder.small_config(VOCAB, hidden_size=32, layers=2, heads=4),
    "grouped": Qwen3Config(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, tie_word_embeddings=True,
    ),
    "gpt2": GPT2Config(vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, attn_pdrop=0, embd_pdrop=0, resid_pdrop=0),
    "windowed": MistralConfig(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, sliding_window=8,
    ),
}  # fmt: skip
TWO_PART = {"llama", "grouped"}


def case(rows=7, prefix=23, longest=6, seed=0):
    g = torch.Generator().manual_seed(seed)
    prefix_ids = torch.randint(0, VOCAB, (prefix,), generator=g)
    suffixes = [
        torch.randint(0, VOCAB, (1 + i % longest,), generator=g).tolist() for i in range(rows)
    ]  # ragged: 1 .. longest
    return prefix_ids, suffixes


def naive(backbone, prefix_ids, suffixes):
    rows = [torch.cat([prefix_ids, torch.tensor(suffix)]) for suffix in suffixes]
    return torch.stack([backbone.base_model(input_ids=row[None]).last_hidden_state[0, -1] for row in rows])


def gradients(backbone, hidden):
    """Of a loss that weighs every output differently."""
    weights = torch.linspace(-1, 1, hidden.numel()).view(hidden.shape)
    backbone.zero_grad()
    (hidden * weights).sum().backward()
    return {name: p.grad.clone() for name, p in backbone.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", CONFIGS)
def test_suffixes_on_a_shared_prefix_equal_whole_sequences(name):
    backbone = decoder.build(CONFIGS[name], seed=1)
    assert decoder.is_two_part(backbone) == (name in TWO_PART)
    prefix_ids, suffixes = case()
    want = naive(backbone, prefix_ids, suffixes)
    want_grad = gradients(backbone, want)
    got = decoder.encode_suffixes(backbone, decoder.encode_prefix(backbone, prefix_ids), *decoder.pad(suffixes))
    assert (got - want).abs().max() <= 1e-5
    got_grad = gradients(backbone, got)
    assert got_grad.keys() == want_grad.keys()
    for key, grad in want_grad.items():
        assert (got_grad[key] - grad).abs().max() <= 1e-5 * grad.abs().max(), key


@pytest.mark.parametrize("name", CONFIGS)
def test_a_prefix_encoded_in_two_pieces_equals_one(name):
    backbone = decoder.build(CONFIGS[name], seed=2)
    prefix_ids, suffixes = case(seed=3)
    source = decoder.encode_prefix(backbone, prefix_ids[:14])
    for tail in (prefix_ids[14:], prefix_ids[14:].flip(0)):  # one encoding of the source serves both
        whole = decoder.encode_prefix(backbone, torch.cat([prefix_ids[:14], tail]))
        pieces = decoder.encode_prefix(backbone, tail, after=source)
        assert pieces.length == whole.length == 23
        a = decoder.encode_suffixes(backbone, whole, *decoder.pad(suffixes))
        b = decoder.encode_suffixes(backbone, pieces, *decoder.pad(suffixes))
        assert (a - b).abs().max() <= 1e-5


@pytest.mark.parametrize("name", CONFIGS)
def test_branches_equal_whole_sequences(name):
    backbone = decoder.build(CONFIGS[name], seed=4)
    prefix_ids, _ = case()
    embed = backbone.get_input_embeddings()
    origin = decoder.encode_prefix(backbone, prefix_ids)
    paths = [[]]
    for parents, tokens in (([0, 0], [5, 9]), ([1, 0, 1], [7, 7, 8]), ([2, 2, 0, 1], [1, 2, 3, 4])):
        paths = [[*paths[parent], token] for parent, token in zip(parents, tokens, strict=True)]
        origin, hidden = decoder.branch(backbone, origin, torch.tensor(parents), embed(torch.tensor(tokens)))
        assert (hidden - naive(backbone, prefix_ids, paths)).abs().max() <= 1e-5


def test_autocast_stays_near_float32():
    backbone = decoder.build(CONFIGS["llama"], seed=8)
    prefix_ids, suffixes = case()
    want = decoder.encode_suffixes(backbone, decoder.encode_prefix(backbone, prefix_ids), *decoder.pad(suffixes))
    with torch.autocast("cpu", torch.bfloat16):
        got = decoder.encode_suffixes(backbone, decoder.encode_prefix(backbone, prefix_ids), *decoder.pad(suffixes))
    (got.float().square().sum()).backward()
    assert 0 < (got - want).abs().max() < 0.1
    assert all(torch.isfinite(p.grad).all() for p in backbone.base_model.parameters())


def test_a_saved_folder_is_a_plain_transformers_model(tmp_path):
    backbone = decoder.build(CONFIGS["llama"], seed=5)
    backbone.save_pretrained(tmp_path)
    ids = torch.arange(12)[None]
    assert not any(b"two_part" in path.read_bytes() for path in tmp_path.iterdir())
    plain = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert plain.config._attn_implementation == "sdpa"
    assert (plain(input_ids=ids).logits - backbone(input_ids=ids).logits).abs().max() < 1e-5
    again = decoder.load(tmp_path)
    assert decoder.is_two_part(again)
    for a, b in zip(backbone.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)


def test_build_is_reproducible_and_leaves_the_random_state_alone():
    state = torch.get_rng_state()
    first, second = (decoder.build(CONFIGS["llama"], seed=6) for _ in range(2))
    other = decoder.build(CONFIGS["llama"], seed=7)
    assert torch.equal(state, torch.get_rng_state())
    names = [n for n, p in first.named_parameters() if p.ndim == 2]
    for name in names:
        assert torch.equal(first.get_parameter(name), second.get_parameter(name))
        assert not torch.equal(first.get_parameter(name), other.get_parameter(name))


def test_user_mistakes_get_one_line(tmp_path):
    with pytest.raises(UserError, match="holds no config"):
        decoder.load(tmp_path)
    with pytest.raises(UserError, match="multiple of 8"):
        decoder.small_config(10, hidden_size=90, heads=4)
    with pytest.raises(UserError, match="empty row"):
        decoder.pad([[1], []])


def small(head_class, seed=0):
    backbone = decoder.build(CONFIGS["llama"], seed=seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        head = head_class(32, LogGrid(low=-3.0, high=5.0, bins=64) if head_class is GridHead else TINY_P10)
        if head_class is DigitHead:
            torch.nn.init.normal_(head.tokens.weight, std=1.0)  # far from uniform, so that errors show
    return backbone, head


TINY_P10 = P10(mantissa_digits=2, min_exponent=-2, max_exponent=0)


def targets(z, failed=None, rank_only=None):
    no = torch.zeros(len(z), dtype=torch.bool)
    return Targets(
        torch.tensor(z), no if failed is None else torch.tensor(failed), no if rank_only is None else rank_only
    )


def all_strings(codec):
    """Every positive number of a codec, by walking its grammar."""
    strings = [[]]
    for _ in range(codec.num_tokens):
        strings = [[*s, token] for s in strings for token in codec.allowed_next(s)]
    return [s for s in strings if codec.decode(s) > 0]


@torch.no_grad()
def brute_force(backbone, head, prefix_ids, suffix):
    """Log-probability of every positive number and of failure, one whole sequence at a time; renormalised."""
    base = backbone.get_input_embeddings()(torch.cat([prefix_ids, torch.tensor(suffix)]))
    strings = [*all_strings(head.codec), head.codec.encode_special("failed")]
    logs = []
    for string in strings:
        embeddings = torch.cat([base, head.tokens(torch.tensor(string[:-1]))])
        hidden = backbone.base_model(inputs_embeds=embeddings[None]).last_hidden_state[0, len(base) - 1 :]
        logits = (hidden @ head.tokens.weight.t()).double()
        log_p, seen = 0.0, []
        for token, row in zip(string, logits, strict=True):
            legal = list(head.codec.allowed_next(seen))
            if not seen:
                legal.remove(1)  # "-"
            elif seen == [0]:
                legal.remove(2)  # zero
            log_p += float(row[token] - row[legal].logsumexp(-1))
            seen.append(token)
        logs.append(log_p)
    p = torch.tensor(logs, dtype=torch.float64).exp()
    return strings[:-1], p[:-1], p[-1]


def hl_gauss(z, edges, sigma):
    mass = gaussian_mass(z, Bins(edges, sigma), len(edges) - 1)
    return mass / mass.sum(-1, keepdim=True)


def test_hl_gauss_is_the_integral_of_a_gaussian():
    edges = torch.linspace(-3, 5, 65, dtype=torch.float64)
    z = torch.tensor([0.3, -2.99, 9.0], dtype=torch.float64)
    got = hl_gauss(z, edges, 0.25)
    fine = torch.linspace(-3, 5, 64 * 400 + 1, dtype=torch.float64)
    middles = (fine[1:] + fine[:-1]) / 2
    for row, centre in zip(got, z.clamp(-3, 5), strict=True):
        density = (-((middles - centre) ** 2) / (2 * 0.25**2)).exp().view(64, 400).sum(-1)
        assert (row - density / density.sum()).abs().max() < 1e-6


def test_rank_loss_equals_a_loop_over_pairs():
    g = torch.Generator().manual_seed(0)
    z, predicted = torch.randn(11, generator=g), torch.randn(11, generator=g)
    z[4] = z[5] + 0.01  # a tie
    best = set(z.argsort()[:3].tolist())  # 20 % of 11 by linear quantile: the third smallest at most
    total = weight = 0.0
    for i in range(11):
        for j in range(11):
            if z[i] - z[j] > 0.02:
                w = 3.0 if {i, j} & best else 1.0
                total += w * math.log1p(math.exp((predicted[j] - predicted[i]).item() / 0.25))
                weight += w
    assert rank_loss(predicted, z).item() == pytest.approx(total / weight, rel=1e-5)
    assert rank_loss(z * 100, z).item() < rank_loss(predicted, z).item() < rank_loss(-z, z).item()
    assert rank_loss(z[:1], z[:1]).item() == 0


def test_grid_loss_is_the_sum_of_its_definitions():
    _, head = small(GridHead)
    hidden = torch.randn(6, 32, generator=torch.Generator().manual_seed(1), requires_grad=True)
    z = [0.5, -1.0, 2.0, 4.9, 0.0, 1.0]
    failed = [False, False, True, False, False, True]
    loss, parts = head.loss_of(hidden, targets(z, failed))
    logits = head.readout(hidden)
    log_p = logits.log_softmax(-1)
    ok = [0, 1, 3, 4]
    gauss = hl_gauss(torch.tensor([z[i] for i in ok]), head.edges, 2 * 8 / 64)
    ce = (-(gauss * log_p[ok, :64]).sum(-1).sum() - log_p[2, 64] - log_p[5, 64]) / 6
    expected = head.distribution_of(hidden).mean()
    raft = torch.stack([(expected[i] - z[i]) ** 2 for i in ok]).mean()
    rank = rank_loss(expected[ok].float(), torch.tensor(z)[ok])
    assert parts["ce"].item() == pytest.approx(ce.item(), rel=1e-5)
    assert parts["raft"].item() == pytest.approx(raft.item(), rel=1e-5)
    assert loss.item() == pytest.approx((ce + raft + 0.5 * rank).item(), rel=1e-5)


def test_rank_only_rows_teach_through_the_rank_term_alone():
    _, head = small(GridHead)
    hidden = torch.randn(5, 32, generator=torch.Generator().manual_seed(2))
    z = [0.5, -1.0, 2.0, 3.0, 0.1]
    every = torch.ones(5, dtype=torch.bool)
    loss, parts = head.loss_of(hidden, targets(z, rank_only=every))
    shifted, _ = head.loss_of(hidden, targets([x + 1.5 for x in z], rank_only=every))
    assert loss.item() == pytest.approx(0.5 * parts["pairwise"].item())
    assert loss.item() == pytest.approx(shifted.item(), rel=1e-5)  # blind to the level
    assert head.loss_of(hidden, targets([-x for x in z], rank_only=every))[0].item() != pytest.approx(loss.item())


def test_all_failed_group_has_a_finite_loss_and_gradient():
    _, head = small(GridHead)
    hidden = torch.randn(4, 32, requires_grad=True)
    loss, parts = head.loss_of(hidden, targets([math.nan] * 4, [True] * 4))
    loss.backward()
    assert parts["raft"] == parts["pairwise"] == 0
    assert loss.item() == pytest.approx(-head.readout(hidden).log_softmax(-1)[:, -1].mean().item())
    assert torch.isfinite(hidden.grad).all()


def test_digit_loss_equals_brute_force_likelihood():
    backbone, head = small(DigitHead)
    prefix_ids, suffixes = case(rows=4, prefix=9)
    ids, lengths = decoder.pad(suffixes)
    prefix = decoder.encode_prefix(backbone, prefix_ids)
    z = [0.7, -2.0, 3.1, 0.0]
    loss, _ = head.loss(backbone, prefix, ids, lengths, targets(z, [False, False, False, True]))
    want = 0.0
    for i, suffix in enumerate(suffixes):
        strings, p, p_fail = brute_force(backbone, head, prefix_ids, suffix)
        want -= math.log(p_fail if i == 3 else p[strings.index(head.codec.encode(2.0 ** z[i]))])
    assert loss.item() == pytest.approx(want / 4, rel=1e-4)


def test_digit_tree_and_samples_equal_brute_force(monkeypatch):
    backbone, head = small(DigitHead)
    prefix_ids, suffixes = case(rows=3, prefix=9)
    ids, lengths = decoder.pad(suffixes)
    with torch.no_grad():
        prefix = decoder.encode_prefix(backbone, prefix_ids)
        approximate = head.distribution(backbone, prefix, ids, lengths)
        monkeypatch.setattr(decode.enumerate_strings, "__kwdefaults__", {"missing_mass": 0.0, "branch_mass": 0.0})
        exact = head.distribution(backbone, prefix, ids, lengths)
        uniforms = (torch.arange(400, dtype=torch.float64) + 0.5) / 400
        samples = head.sample(backbone, prefix, ids, lengths, uniforms.expand(3, -1))
        for i, suffix in enumerate(suffixes):
            strings, p, p_fail = brute_force(backbone, head, prefix_ids, suffix)
            value = torch.tensor([head.codec.decode(s) for s in strings], dtype=torch.float64).log2()
            value, order = value.sort()
            p = (p / p.sum())[order]
            assert exact.p_fail[i].item() == pytest.approx(p_fail.item(), rel=1e-4)
            assert exact.mean()[i].item() == pytest.approx((value * p).sum().item(), abs=1e-5)
            assert approximate.mean()[i].item() == pytest.approx((value * p).sum().item(), abs=0.02)
            for q in (0.1, 0.5, 0.9):  # stratified samples: the empirical CDF is within 1 / S of the exact one
                at = value[(p.cumsum(0) < q).sum()]
                below = p[value <= at].sum()
                assert abs((samples[i] <= at + 1e-9).double().mean() - below) < 0.02


def test_equal_uniforms_give_equal_samples_whatever_the_company():
    backbone, head = small(DigitHead)
    prefix_ids, suffixes = case(rows=1)
    prefix = decoder.encode_prefix(backbone, prefix_ids)
    u = torch.rand(1, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole = head.sample(backbone, prefix, *decoder.pad(suffixes), u)
        alone = [head.sample(backbone, prefix, *decoder.pad(suffixes), u[:, i : i + 1]) for i in range(50)]
    assert torch.equal(whole, torch.cat(alone, -1))


def test_distribution_agrees_with_numpy_on_a_large_sample():
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 65, generator=g) * 2
    grid = LogGrid(low=-3.0, high=5.0, bins=64)
    d = decode.from_grid(logits, torch.as_tensor(grid.centres))
    assert torch.allclose(d.p_fail, logits.double().softmax(-1)[:, -1])
    assert torch.allclose(d.mean(), (d.weights * torch.as_tensor(grid.centres)).sum(-1))
    for row in range(3):
        cdf = np.concatenate([[0], d.weights[row].cumsum(0).numpy()])
        inner = (grid.centres[1:] + grid.centres[:-1]) / 2
        edges = np.concatenate([grid.centres[:1], inner, grid.centres[-1:]])
        for q in (0.05, 0.31, 0.5, 0.95):
            assert d.quantile(q)[row].item() == pytest.approx(np.interp(q, cdf, edges), abs=1e-9)
    assert (d.quantile(0.0) <= d.quantile(0.2)).all()
    assert (d.quantile(1.0) <= grid.centres[-1]).all()


def test_mixture_is_the_law_of_a_random_member():
    g = torch.Generator().manual_seed(3)
    centres = torch.linspace(-1, 1, 8, dtype=torch.float64)
    members = [decode.from_grid(torch.randn(2, 9, generator=g), centres) for _ in range(3)]
    got = decode.mixture(members)
    joint = torch.stack([(1 - m.p_fail)[:, None] * m.weights for m in members]).mean(0)
    assert torch.allclose(got.weights, joint / joint.sum(-1, keepdim=True))
    assert torch.allclose(got.p_fail, 1 - joint.sum(-1))
    moved = [decode.Distribution(m.support + 0.01 * i, m.weights, m.p_fail) for i, m in enumerate(members)]
    wide = decode.mixture(moved)
    assert torch.allclose(wide.weights.sum(-1), torch.ones(2, dtype=torch.float64))
    assert (wide.support.diff(dim=-1) >= 0).all()
    means = torch.stack([(1 - m.p_fail) * m.mean() for m in moved]).sum(0) / torch.stack(
        [1 - m.p_fail for m in moved]
    ).sum(0)
    assert torch.allclose(wide.mean(), means)


@pytest.mark.parametrize("head_class", [GridHead, DigitHead])
def test_a_model_folder_round_trips_and_its_first_member_is_plain_transformers(tmp_path, head_class):
    members = [checkpoint.Member(*small(head_class, seed=seed)) for seed in range(3)]
    tokenizer = TextTokenizer.train(["int main() { return 0; }"], vocab_size=400)
    checkpoint.save(tmp_path, members, tokenizer, details={"trained_on": ["a", "b"]})
    again, read, details = checkpoint.load(tmp_path)
    assert details == {"trained_on": ["a", "b"]}
    assert read.encode("return 10;") == tokenizer.encode("return 10;")
    assert not list(tmp_path.glob("*.part"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]
    for before, after in zip(members, again, strict=True):
        for a, b in zip(before.backbone.parameters(), after.backbone.parameters(), strict=True):
            assert torch.equal(a.bfloat16().float(), b)
        for a, b in zip(before.head.parameters(), after.head.parameters(), strict=True):
            assert torch.equal(a.bfloat16().float(), b)
    ids = torch.arange(9)[None]
    plain = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert plain.config._attn_implementation == "sdpa"
    assert (plain(input_ids=ids).logits - again[0].backbone(input_ids=ids).logits).abs().max() < 1e-5
    prefix_ids, suffixes = case(rows=2)
    prefix = decoder.encode_prefix(again[1].backbone, prefix_ids)
    d = again[1].head.distribution(again[1].backbone, prefix, *decoder.pad(suffixes))
    checkpoint.save(tmp_path / "again", again, tokenizer)  # bfloat16 twice is bfloat16 once
    third = checkpoint.load(tmp_path / "again")[0][1]
    prefix = decoder.encode_prefix(third.backbone, prefix_ids)
    assert torch.equal(d.mean(), third.head.distribution(third.backbone, prefix, *decoder.pad(suffixes)).mean())


def test_a_foreign_backbone_can_be_a_member(tmp_path):
    head = GridHead(32, LogGrid(low=-3.0, high=5.0, bins=64))
    members = [checkpoint.Member(decoder.build(CONFIGS["gpt2"], seed=seed), head) for seed in range(2)]
    checkpoint.save(tmp_path, members, TextTokenizer.train(["x"], vocab_size=400))
    for before, after in zip(members, checkpoint.load(tmp_path)[0], strict=True):
        ids = torch.arange(9)[None]
        want = before.backbone.bfloat16().float()(input_ids=ids).logits
        assert (after.backbone(input_ids=ids).logits - want).abs().max() < 1e-5


def test_broken_folders_get_one_line(tmp_path):
    with pytest.raises(UserError, match=r"expected the config\.json of a model folder"):
        checkpoint.load(tmp_path)
    checkpoint.save(tmp_path, [checkpoint.Member(*small(GridHead))], TextTokenizer.train(["x"], vocab_size=400))
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="whole safetensors"):
        checkpoint.load(tmp_path)
