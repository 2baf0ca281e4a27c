"""The tree of number strings, sampled, searched and summed up, and what is read off a distribution."""

import math

import pytest
import torch

from costmodel.codecs.digits import P10
from costmodel.codecs.repeated import Repeated
from costmodel.model import decode, decoder
from costmodel.model.digit_head import DigitHead
from costmodel.records import READOUTS, Prediction, UserError

torch.set_num_threads(1)


@pytest.mark.parametrize("branch_mass", [0.0, 1e-3, 0.05, 0.3])
def test_merging_siblings_keeps_mass_and_leaves_heavy_ones_alone(branch_mass):
    g = torch.Generator().manual_seed(0)
    children = torch.randn(40, 12, generator=g, dtype=torch.float64).mul(2).softmax(-1)
    children = children * torch.rand(40, 1, generator=g, dtype=torch.float64).pow(3)
    children[:, ::5] = 0.0  # forbidden by a grammar
    merged = decode._merged(children, branch_mass)
    assert torch.allclose(merged.sum(-1), children.sum(-1))
    assert (merged[children == 0] == 0).all()
    assert (merged[children > 2 * branch_mass] >= children[children > 2 * branch_mass]).all()
    # no mass moves past more than one bucket of it: the two cumulative sums stay that near
    assert ((merged.cumsum(-1) - children.cumsum(-1)).abs() <= 1.5 * branch_mass + 1e-12).all()
    if branch_mass:
        assert ((merged > 0).sum(-1) <= children.sum(-1) / branch_mass + 1).all()
    else:
        assert torch.equal(merged, children)


def test_a_tree_of_a_few_hundred_strings_is_near_the_exact_distribution(monkeypatch):
    backbone = decoder.build(decoder.small_config(61, hidden_size=32, layers=2, heads=4), seed=0)
    head = DigitHead(32, P10(mantissa_digits=3, min_exponent=-3, max_exponent=1))
    torch.nn.init.normal_(head.tokens.weight, std=0.5, generator=torch.Generator().manual_seed(0))
    place = backbone, decoder.encode_prefix(backbone, torch.arange(20)), *decoder.pad([[3, 1, 4], [1, 5]])
    with torch.no_grad():
        few = head.distribution(*place)
        monkeypatch.setattr(decode.enumerate_strings, "__kwdefaults__", {"missing_mass": 0.0, "branch_mass": 0.0})
        exact = head.distribution(*place)
    assert few.support.shape[1] < exact.support.shape[1] / 2
    for row in range(2):
        support = torch.cat([few.support[row], exact.support[row]])
        signed = torch.cat([few.weights[row], -exact.weights[row]])
        order = support.argsort()
        gap = signed[order].cumsum(0)[:-1].abs() @ support[order].diff()  # Wasserstein distance in log2 units
        assert gap < 0.05


WHOLE = {"missing_mass": 0.0, "branch_mass": 0.0}


def tiny(codec, seed=0, std=0.5):
    """A backbone, a head far from uniform, and a place to write at."""
    backbone = decoder.build(decoder.small_config(61, hidden_size=32, layers=2, heads=4), seed=seed)
    head = DigitHead(32, codec)
    torch.nn.init.normal_(head.tokens.weight, std=std, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        place = backbone, decoder.encode_prefix(backbone, torch.arange(20)), *decoder.pad([[3, 1, 4], [1, 5]])
    return head, place


def roots(head, place):
    return head._writer(place[0]), [root for root, _ in head._roots(*place)]


TWO_DIGITS = P10(mantissa_digits=2, min_exponent=-2, max_exponent=0)


@torch.no_grad()
def test_a_wide_beam_is_exact_and_a_narrow_one_is_greedy():
    head, place = tiny(TWO_DIGITS)
    writer, levels = roots(head, place)
    for root in levels:
        strings, mass, own = decode.enumerate_strings(writer, root, **WHOLE)
        assert torch.equal(mass, own)
        found, score = decode.beam(writer, root, 1000)
        assert len(found) == len(strings) == 9 * 10 * 3
        order = mass.argsort(descending=True)
        assert torch.equal(found, strings[order])
        assert torch.allclose(score, mass[order].log())
        assert (decode.beam(writer, root, 40)[1] <= score[:40] + 1e-12).all()
        # greedy: the likeliest token each time, whatever comes after
        (greedy,), _ = decode.beam(writer, root, 1)
        begun = writer.forced.tolist()
        for position in range(len(begun), writer.num_tokens):
            alike = (strings[:, :position] == torch.tensor(begun)).all(-1)
            chances = [
                mass[alike & (strings[:, position] == token)].sum() for token in range(len(head.codec.vocabulary))
            ]
            begun.append(int(torch.stack(chances).argmax()))
        assert greedy.tolist() == begun
    best = head.beam(*place, width=1000)
    assert torch.equal(best, head.distribution(*place).mode())
    with pytest.raises(UserError, match="expected 1 or more"):
        decode.beam(writer, levels[0], 0)


@torch.no_grad()
@pytest.mark.parametrize(
    "codec", [TWO_DIGITS, Repeated(P10(mantissa_digits=1, min_exponent=-1, max_exponent=0), times=2)]
)
def test_log_probabilities_are_those_of_the_tree_and_sum_to_one(codec):
    head, place = tiny(codec)
    writer, levels = roots(head, place)
    strings, _, own = decode.enumerate_strings(writer, levels[0], **WHOLE)
    shuffled = torch.randperm(len(strings), generator=torch.Generator().manual_seed(0))
    told = decode.log_probability(writer, levels[0], strings[shuffled]).sum(-1)
    assert torch.allclose(told, own[shuffled].log())
    assert told.exp().sum().item() == pytest.approx(1, abs=1e-6)
    wrong = strings[:2].clone()
    wrong[0, 1] = codec.failed  # in the middle of a number
    wrong[1, 0] = 1  # "-"
    assert (decode.log_probability(writer, levels[0], wrong).sum(-1) == -math.inf).all()
    if codec is TWO_DIGITS:
        z = torch.tensor([[0.3, 1.7, 6.0]] * 2)
        got = head.log_probability(*place, z)[0]
        for value, log_p in zip(z[0].tolist(), got.tolist(), strict=True):
            string = torch.tensor(codec.encode(2.0**value))
            assert log_p == pytest.approx(own[(strings == string).all(-1)].log().item())


@torch.no_grad()
def test_tempered_samples_follow_the_tempered_tree():
    """Each token is drawn from its softmax at the temperature: by brute force over all strings."""
    head, place = tiny(TWO_DIGITS)
    writer, levels = roots(head, place)
    strings, _, _ = decode.enumerate_strings(writer, levels[0], **WHOLE)
    for temperature in (0.5, 5.0):
        log_p = torch.zeros(len(strings), dtype=torch.float64)
        level, node = levels[0], torch.zeros(len(strings), dtype=torch.long)
        for position in range(len(writer.forced), writer.num_tokens):
            logits = level.logits.double().masked_fill(~writer.legal[level.state], -math.inf) / temperature
            log_p += logits.log_softmax(-1)[node, strings[:, position]]
            if position + 1 < writer.num_tokens:
                level = writer.grow(level, node, strings[:, position])
                node = torch.arange(len(strings))
        drawn = decode.sample(writer, levels[0], decode.stratified(20000, seed=1), temperature=temperature)
        counts = torch.stack([(drawn == s).all(-1).sum() for s in strings]) / 20000
        assert (counts - log_p.exp()).abs().max() < 2e-4  # strata: within two samples of the truth
    with pytest.raises(UserError, match="temperature"):
        decode.sample(writer, levels[0], decode.stratified(2), temperature=0.0)


@torch.no_grad()
def test_samples_do_not_depend_on_how_many_are_drawn_at_once():
    head, place = tiny(TWO_DIGITS)
    writer, levels = roots(head, place)
    uniforms = torch.rand(500, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    whole = decode.sample(writer, levels[0], uniforms)
    assert torch.equal(whole, decode.sample(writer, levels[0], uniforms, chunk=64))


def test_stratified_numbers_are_one_of_each_part():
    u = decode.stratified(100, seed=3)
    assert u.dtype == torch.float64
    assert torch.equal((u * 100).long(), torch.arange(100))
    assert torch.equal(u, decode.stratified(100, seed=3))
    assert not torch.equal(u, decode.stratified(100, seed=4))


@torch.no_grad()
def test_copies_of_a_number_are_told_by_where_they_agree(monkeypatch):
    codec = Repeated(P10(mantissa_digits=1, min_exponent=-1, max_exponent=1), times=3)
    head, place = tiny(codec)
    writer, levels = roots(head, place)
    strings, _, own = decode.enumerate_strings(writer, levels[0], **WHOLE)
    few = head.distribution(*place)
    monkeypatch.setattr(decode.enumerate_strings, "__kwdefaults__", {"length": None, **WHOLE})
    told = head.distribution(*place)
    copies = strings.view(len(strings), 3, 3)
    agree = (copies == copies[:, :1]).all(-1).all(-1)
    value = torch.tensor([codec.decode(s) for s in strings[agree].tolist()], dtype=torch.float64).log2()
    value, order = value.sort()
    want = own[agree][order] / own[agree].sum()
    assert torch.allclose(told.support[0], value)
    assert torch.allclose(told.weights[0], want)
    assert torch.allclose(few.mean(), told.mean(), atol=0.05)  # without the light strings
    # samples say what most of the three copies say
    uniforms = torch.rand(200, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    drawn = decode.sample(writer, levels[0], uniforms)
    said = head.sample(*place, uniforms.expand(2, -1))[0]
    assert said.tolist() == pytest.approx([math.log2(codec.decode(s)) for s in drawn.tolist()])


# -------------------------------------------------------------------------------------------------- one number


def three_points():
    """Two rows: most of the mass low, and a mode far off."""
    support = torch.tensor([[0.0, 1.0, 2.0, 5.0, 6.0]] * 2, dtype=torch.float64)
    weights = torch.tensor([[0.3, 0.25, 0.05, 0.0, 0.4], [0.1, 0.15, 0.45, 0.2, 0.1]], dtype=torch.float64)
    return decode.Distribution(support, weights, torch.zeros(2))


@pytest.mark.parametrize(("readout", "cost"), [
    ("mean", lambda z, x: (z - x).square()),
    ("median", lambda z, x: (z - x).abs()),
    ("mean-raw", lambda z, x: (z.exp2() - x.exp2()).square()),
    ("relative", lambda z, x: (z.exp2() - x.exp2()).abs() / z.exp2()),
])  # fmt: skip
def test_a_readout_is_the_best_answer_by_its_own_loss(readout, cost):
    """Among a fine grid of answers none costs less on average, where the law is a fine grid itself."""
    z = torch.linspace(-2, 3, 2001, dtype=torch.float64)
    density = (-(z - 0.5).square() * 3).exp() + 0.7 * (-(z - 2.2).square() * 40).exp()
    weights = (density / density.sum())[None]
    told = decode.read(decode.Distribution(z[None], weights, torch.zeros(1)), readout).item()
    average = torch.stack([(weights[0] * cost(z, x)).sum() for x in z])
    assert told == pytest.approx(z[average.argmin()].item(), abs=0.005)


def test_squared_errors_are_least_at_the_mean_where_the_mode_is_off_by_half_the_range():
    """RAIL (Lukasik et al., 2024), Lemma 1: the mode may be as wrong as half of the range."""
    told = three_points()
    assert decode.read(told, "mode").tolist() == [6.0, 2.0]
    assert decode.read(told, "mean").tolist() == pytest.approx([2.75, 2.65])
    assert decode.read(told, "mean-raw").tolist() == pytest.approx(
        [math.log2(0.3 + 0.5 + 0.2 + 0.4 * 64), math.log2(0.1 + 0.3 + 1.8 + 6.4 + 6.4)]
    )
    # a slowdown's relative error is dear where the truth is small, so that the answer is low
    assert (decode.read(told, "relative") < decode.read(told, "median")).all()


def test_the_mode_of_a_grid_is_its_densest_bin():
    centres = torch.tensor([0.0, 1.0, 3.0, 7.0])
    told = decode.from_grid(torch.tensor([[0.2, 0.21, 0.3, 0.29, 0.0]]).clamp_min(1e-9).log(), centres)
    assert told.mode().tolist() == [0.0]  # 0.3 lies on a bin three times as wide
    alone = decode.Distribution(torch.tensor([[2.0]]), torch.ones(1, 1), torch.zeros(1))
    assert alone.mode().tolist() == [2.0]


@pytest.mark.parametrize("readout", READOUTS)
def test_a_prediction_is_read_as_the_distribution_that_it_was_made_of(readout):
    """To a cell of the grid where the cells' ends matter: one is linear in microseconds, the other in their log2."""
    z = torch.linspace(-1, 2, 61, dtype=torch.float64)
    peaks = torch.tensor([[0.4], [-1.0], [1.97], [9.0]], dtype=torch.float64)  # some at an end, or beyond it
    weights = (-(z - peaks).square()).exp() + 0.3 * (-(z - 1.5).square() * 30).exp()
    weights = weights / weights.sum(-1, keepdim=True)
    told = decode.read(decode.Distribution(z.expand_as(weights), weights, torch.zeros(len(peaks))), readout)
    cell = 0.0 if readout in ("mean", "mean-raw", "mode") else (z[1] - z[0]).item()
    for row, expected in zip(weights.tolist(), told.tolist(), strict=True):
        read = Prediction(tuple(z.exp2().tolist()), tuple(row)).read_us(readout)
        assert math.log2(read) == pytest.approx(expected, abs=cell + 1e-9)


def test_the_mode_of_a_prediction_is_no_half_bin_at_an_end_and_adds_up_what_is_said_twice():
    assert Prediction((1.0, 2.0, 4.0), (0.3, 0.4, 0.3)).read_us("mode") == 2.0
    assert Prediction((1.0, 2.0, 2.0, 2.0, 4.0), (0.4, 0.1, 0.1, 0.1, 0.3)).read_us("mode") == 1.0
    assert Prediction((3.0,), (1.0,)).read_us("mode") == 3.0


def test_unknown_readouts_are_named():
    with pytest.raises(UserError, match="got readout 'rail', expected one of median, mean, mean-raw, relative, mode"):
        decode.read(three_points(), "rail")


@torch.no_grad()
def test_the_mode_of_a_mixture_adds_up_what_its_members_say_of_a_string():
    head, place = tiny(TWO_DIGITS)
    other, _ = tiny(TWO_DIGITS, seed=1)
    members = [h.distribution(*place) for h in (head, head, other)]
    mixed = decode.mixture(members)
    chances = {}
    for m in members:
        for z, p in zip(m.support[0].tolist(), (m.own[0] * (1 - m.p_fail[0])).tolist(), strict=True):
            chances[z] = chances.get(z, 0.0) + p
    assert mixed.mode()[0].item() == max(chances, key=chances.get)
    assert torch.allclose(mixed.weights.sum(-1), torch.ones(2, dtype=torch.float64))
