"""Every numeric head by name: the protocol they share, and the definitions of what they are trained on."""

import math

import numpy as np
import pytest
import torch
from torch.distributions import Categorical, MixtureSameFamily, Normal
from torch.nn import functional as F

from costmodel.codecs.grids import LogGrid
from costmodel.model import checkpoint, decoder, heads, losses
from costmodel.model.grid_head import TARGETS, GridHead
from costmodel.model.losses import Targets
from costmodel.model.scalar_heads import MixtureHead, ScalarHead
from costmodel.records import UserError
from costmodel.tokens import TextTokenizer

torch.set_num_threads(1)

VOCAB, WIDTH = 400, 32
CONFIG = decoder.small_config(VOCAB, hidden_size=WIDTH, layers=1, heads=4)
TRAINED = np.linspace(-2.0, 3.0, 400)


def member(name, loss=None, seed=0):
    backbone = decoder.build(CONFIG, seed=seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return backbone, heads.make(name, WIDTH, z=TRAINED, vocab_size=VOCAB, loss=loss)


def batch(backbone, rows=12, seed=0):
    """Suffixes of one token and, of the last, a second: z follows the first token; two rows failed."""
    g = torch.Generator().manual_seed(seed)
    suffixes = [[int(t)] for t in torch.randint(3, 43, (rows,), generator=g)]
    suffixes[-1].append(7)
    z = torch.tensor([(s[0] - 3) / 8 - 2 for s in suffixes])
    failed = torch.zeros(rows, dtype=torch.bool)
    failed[:2] = True
    z[:2] = float("nan")
    prefix = decoder.encode_prefix(backbone, torch.arange(5))
    return prefix, *decoder.pad(suffixes), Targets(z, failed, torch.zeros(rows, dtype=torch.bool))


@pytest.mark.parametrize("name", heads.NAMES)
class TestEveryHead:
    def test_its_distributions_are_distributions(self, name):
        backbone, head = member(name)
        prefix, ids, lengths, _ = batch(backbone)
        told = head.distribution(backbone, prefix, ids, lengths)
        assert told.support.shape == told.weights.shape
        assert len(told.support) == len(ids)
        assert (told.support.diff(dim=-1) >= 0).all()
        assert told.weights.min() >= 0
        assert told.weights.sum(-1).sub(1).abs().max() < 1e-6
        assert ((told.p_fail >= 0) & (told.p_fail <= 1)).all()
        assert torch.isfinite(told.mean()).all()

    def test_its_loss_teaches_finitely_even_where_everything_failed(self, name):
        backbone, head = member(name)
        prefix, ids, lengths, targets = batch(backbone)
        everything = Targets(targets.z * float("nan"), torch.ones_like(targets.failed), targets.rank_only)
        for case in (targets, everything):
            backbone.zero_grad()
            loss, parts = head.loss(backbone, prefix, ids, lengths, case)
            loss.backward(retain_graph=True)
            assert torch.isfinite(loss)
            assert parts
            gradients = [p.grad for p in (*head.parameters(), *backbone.parameters()) if p.grad is not None]
            assert gradients
            assert all(torch.isfinite(g).all() for g in gradients)

    def test_rows_of_a_search_do_not_teach_the_level(self, name):
        backbone, head = member(name)
        prefix, ids, lengths, targets = batch(backbone)
        gathered = torch.ones_like(targets.rank_only)
        first, _ = head.loss(backbone, prefix, ids, lengths, Targets(targets.z, targets.failed, gathered))
        higher, _ = head.loss(backbone, prefix, ids, lengths, Targets(targets.z + 1, targets.failed, gathered))
        assert first.item() == pytest.approx(higher.item(), rel=1e-4)

    def test_a_saved_one_says_the_same(self, name, tmp_path):
        backbone, head = member(name)
        for p in (*backbone.parameters(), *head.parameters()):
            p.data = p.data.bfloat16().float()  # as it is saved
        checkpoint.save(tmp_path, [checkpoint.Member(backbone, head)], TextTokenizer.train(["x"], vocab_size=400))
        (again,), _, _ = checkpoint.load(tmp_path)
        assert again.head.spec() == head.spec()
        prefix, ids, lengths, _ = batch(backbone)
        mine = head.distribution(backbone, prefix, ids, lengths)
        prefix = decoder.encode_prefix(again.backbone, torch.arange(5))
        theirs = again.head.distribution(again.backbone, prefix, ids, lengths)
        assert torch.allclose(mine.support, theirs.support)
        assert torch.allclose(mine.weights, theirs.weights, atol=1e-6)

    def test_it_learns_an_order(self, name):
        """The smoke test that a user's own first try is: z says which token was written."""
        backbone, head = member(name)
        backbone.train()
        trained = [*backbone.parameters(), *head.parameters()]
        optimizer = torch.optim.AdamW(trained, lr=1e-2)
        for step in range(100):
            prefix, ids, lengths, targets = batch(backbone, rows=48, seed=step)
            optimizer.zero_grad()
            head.loss(backbone, prefix, ids, lengths, targets)[0].backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
        backbone.eval()
        prefix, ids, lengths, targets = batch(backbone, rows=20, seed=1000)
        told = head.distribution(backbone, prefix, ids, lengths).quantile(0.5)
        ok = ~targets.failed
        ranks = torch.corrcoef(torch.stack([told[ok].argsort().argsort(), targets.z[ok].argsort().argsort()]).double())
        assert ranks[0, 1] > 0.8

    def test_an_unknown_term_names_the_known_ones(self, name):
        with pytest.raises(UserError, match=r"got loss term 'no-such'.*expected terms of"):
            member(name, loss="no-such")


def test_an_unknown_head_names_the_known_ones():
    with pytest.raises(UserError, match=r"got head 'griid', expected one of grid, learned-grid"):
        member("griid")


def test_two_targets_are_refused():
    with pytest.raises(UserError, match="at most one of hl-gauss, two-hot, hard"):
        member("grid", loss="hard+two-hot")
    with pytest.raises(UserError, match="each term once"):
        member("grid", loss="raft+raft")


def test_an_expectation_that_cannot_reach_a_value_is_refused():
    with pytest.raises(UserError, match=r"up to 20 for a grid of -6 to 14"):
        heads.make("grid", WIDTH, z=[0.0, 20.0], vocab_size=VOCAB)
    heads.make("grid", WIDTH, z=[0.0, 20.0], vocab_size=VOCAB, loss="hl-gauss")  # a likelihood only clips it


# ---- what the terms are


Z = torch.tensor([0.31, -1.2, 2.6, 0.0])


def grid_loss(loss, *, learned=False):
    torch.manual_seed(0)
    head = GridHead(WIDTH, LogGrid(low=-3.0, high=5.0, bins=16), loss=loss, learned=learned, z_var=2.0, raw_var=5.0)
    hidden = 2 * torch.randn(len(Z), WIDTH)
    no = torch.zeros(len(Z), dtype=torch.bool)
    _, parts = head.loss_of(hidden, Targets(Z, no, no))
    logits = head.readout(hidden)
    return parts, logits.softmax(-1), logits[:, :-1].softmax(-1), head


def test_hard_and_two_hot_targets():
    parts, p, _, head = grid_loss("hard")
    tokens = [head.grid.encode(z)[0] for z in Z.tolist()]
    assert parts["ce"].item() == pytest.approx(-p[range(4), tokens].log().mean().item(), rel=1e-5)
    parts, p, _, head = grid_loss("two-hot")
    wanted = torch.zeros(4, 17)
    for row, z in enumerate(Z.tolist()):
        right = next(i for i, c in enumerate(head.grid.centres) if c >= z)
        share = (z - head.grid.centres[right - 1]) / 0.5
        wanted[row, right], wanted[row, right - 1] = share, 1 - share
    assert (wanted[:, :-1] @ torch.as_tensor(head.grid.centres).float() - Z).abs().max() < 1e-6  # its expectation is z
    assert parts["ce"].item() == pytest.approx(-(wanted * p.log()).sum(-1).mean().item(), rel=1e-5)


def test_two_hot_beyond_the_middles_is_the_end():
    head = GridHead(WIDTH, LogGrid(low=-3.0, high=5.0, bins=16), loss="two-hot")
    ends = head._two_hot(torch.tensor([-9.0, 9.0]), torch.ones(2, dtype=torch.bool))
    assert ends[0, 0] == 1
    assert ends[1, 15] == 1


def test_regression_aware_terms():
    for learned in (False, True):
        parts, p, given, head = grid_loss("+".join(losses.ONE_TOKEN_TERMS), learned=learned)
        values = head.centres.detach()
        expected, raw = given @ values, given @ values.exp2()
        want = {
            "raft": (expected - Z).square().mean() / 2,
            "raft-raw": (raw - Z.exp2()).square().mean() / 5,
            "raft-relative": (raw / Z.exp2() - 1).square().mean(),
            "raft-unnormalized": (p[:, :-1] @ values - Z).square().mean() / 2,
            "sampled": sum((given[:, i] * (values[i] - Z).square()).mean() for i in range(16)) / 2,
        }
        for name, value in want.items():
            assert parts[name].item() == pytest.approx(value.item(), rel=1e-4), name


def test_without_a_target_failures_are_learned_all_the_same():
    head = GridHead(WIDTH, LogGrid(), loss="raft")
    hidden = torch.randn(4, WIDTH)
    failed = torch.tensor([True, False, False, True])
    _, parts = head.loss_of(hidden, Targets(Z, failed, torch.zeros(4, dtype=torch.bool)))
    p_fail = head.distribution_of(hidden).p_fail.float()
    assert parts["ce"].item() == pytest.approx(F.binary_cross_entropy(p_fail, failed.float()).item(), rel=1e-4)


def test_learned_values_move_and_stay_in_order_when_told():
    head = GridHead(WIDTH, LogGrid(low=-3.0, high=5.0, bins=16), loss="raft", learned=True)
    with torch.no_grad():
        head.centres[3] = 4.0
    no = torch.zeros(4, dtype=torch.bool)
    hidden = torch.randn(4, WIDTH)
    head.loss_of(hidden, Targets(Z, no, no))[0].backward()
    assert head.centres.grad.abs().sum() > 0
    told = head.distribution_of(hidden)
    assert (told.support.diff(dim=-1) >= 0).all()
    expected = head.readout(hidden)[:, :-1].softmax(-1) @ head.centres
    assert torch.allclose(told.mean().float(), expected, atol=1e-5)


def test_the_listwise_loss_is_the_divergence_of_who_is_fastest():
    g = torch.Generator().manual_seed(0)
    z, predicted = torch.randn(9, generator=g), torch.randn(9, generator=g)
    p, q = ((-x / losses.RANK_TEMPERATURE).softmax(0) for x in (z, predicted))
    assert losses.listwise_loss(predicted, z).item() == pytest.approx((p * (p / q).log()).sum().item(), rel=1e-4)
    assert losses.listwise_loss(z + 3, z).item() == pytest.approx(0, abs=1e-5)


def test_a_mixture_is_what_torch_says_it_is():
    backbone = decoder.build(CONFIG, seed=0)
    torch.manual_seed(0)
    head = MixtureHead(WIDTH, components=3, loss="nll", z_mean=0.5, z_std=2.0)
    prefix, ids, lengths, targets = batch(backbone)
    _, parts = head.loss(backbone, prefix, ids, lengths, targets)
    log_share, middle, sigma, _ = head._read(decoder.encode_suffixes(backbone, prefix, ids, lengths))
    density = MixtureSameFamily(Categorical(logits=log_share), Normal(0.5 + 2 * middle, 2 * sigma))
    nll = -density.log_prob(torch.where(targets.failed, 0.0, targets.z))[~targets.failed].mean() - math.log(2)
    assert parts["nll"].item() == pytest.approx(nll.item(), rel=1e-4)
    told = head.distribution(backbone, prefix, ids, lengths)
    assert torch.allclose(told.mean().float(), density.mean, atol=1e-3)


@pytest.mark.parametrize("how", ["mean", "min", "max"])
def test_pooling_leaves_padding_out(how):
    backbone, head = member(f"pooled-{how}")
    prefix = decoder.encode_prefix(backbone, torch.arange(5))
    alone = head.distribution(backbone, prefix, *decoder.pad([[4, 9]])).mean()
    padded = head.distribution(backbone, prefix, *decoder.pad([[4, 9], [5, 6, 7, 8]])).mean()
    assert alone[0].item() == pytest.approx(padded[0].item(), abs=1e-6)


def test_the_deviation_is_that_of_the_errors_and_teaches_the_value_nothing():
    backbone = decoder.build(CONFIG, seed=0)
    head = ScalarHead(WIDTH, loss="squared", z_std=2.0)
    with torch.no_grad():
        prefix, ids, lengths, targets = batch(backbone, rows=40)
    state = {name: p.detach().clone() for name, p in head.value.named_parameters()}
    optimizer = torch.optim.Adam([head.log_sigma], lr=0.05)
    for _ in range(300):
        optimizer.zero_grad()
        head.loss(backbone, prefix, ids, lengths, targets)[0].backward()
        optimizer.step()
    errors = (head.distribution(backbone, prefix, ids, lengths).mean() - targets.z)[~targets.failed]
    assert head.log_sigma.exp().item() * 2 == pytest.approx(errors.square().mean().sqrt().item(), rel=1e-2)
    assert all(torch.equal(p, state[name]) for name, p in head.value.named_parameters())


def test_a_reading_that_no_scalar_head_knows_is_named():
    with pytest.raises(UserError, match="got read='first', expected one of last, pooled-mean"):
        ScalarHead.from_spec(WIDTH, {**ScalarHead(WIDTH).spec(), "read": "first"})


@pytest.mark.parametrize("target", TARGETS)
def test_features_can_take_the_place_of_tokens(target):
    backbone, head = member("grid", loss=target)
    prefix, ids, lengths, targets = batch(backbone)
    embeddings = backbone.get_input_embeddings()(ids)
    by_ids = head.loss(backbone, prefix, ids, lengths, targets)[0]
    by_features = head.loss(backbone, prefix, embeddings, lengths, targets)[0]
    assert by_ids.item() == by_features.item()


def test_a_prefix_read_both_ways_sees_its_end_and_suffixes_stay_causal(tmp_path):
    config = decoder.small_config(VOCAB, hidden_size=WIDTH, layers=2, heads=4, prefix_lm=True)
    both, causal = decoder.build(config, seed=0), decoder.build(CONFIG, seed=0)
    assert not hasattr(causal.config, "prefix_lm") or causal.config.prefix_lm is False
    first, second = torch.arange(6), torch.tensor([0, 1, 2, 3, 4, 60])

    def keys(backbone, ids):  # of the last layer, at the first token
        return decoder.encode_prefix(backbone, ids).cache.layers[-1].keys[0, :, 0]

    assert not torch.allclose(keys(both, first), keys(both, second), atol=1e-6)
    two_layers = decoder.build(decoder.small_config(VOCAB, hidden_size=WIDTH, layers=2, heads=4), seed=0)
    assert torch.equal(keys(two_layers, first), keys(two_layers, second))
    prefix = decoder.encode_prefix(both, first)
    short = decoder.encode_suffixes(both, prefix, *decoder.pad([[4, 9]]))
    longer = decoder.suffix_states(
        both, prefix, decoder.embedded(both, torch.tensor([[4, 9, 33]])), torch.tensor([[1]])
    )
    assert torch.allclose(short[0], longer[0, 0], atol=1e-6)
    head = heads.make("grid", WIDTH, z=TRAINED, vocab_size=VOCAB)
    checkpoint.save(tmp_path, [checkpoint.Member(both, head)], TextTokenizer.train(["x"], vocab_size=400))
    assert checkpoint.load(tmp_path)[0][0].backbone.config.prefix_lm is True
