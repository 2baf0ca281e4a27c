"""The numeric head's ops: references against loops, kernels against references.

Kernels run on a GPU where there is one. Elsewhere Triton interprets them, which it decides when they are decorated, so
one test runs this file again in a process with TRITON_INTERPRET=1.
"""

import itertools
import math
import os
import re
import subprocess
import sys

import pytest
import torch

from costmodel.codecs.digits import P10
from costmodel.codecs.grids import LogGrid
from costmodel.ops import dispatch
from costmodel.ops.numeric_loss import numeric_loss, numeric_loss_ref
from costmodel.ops.numeric_rows import IGNORED, SOFT, Bins, numeric_rows, numeric_rows_ref
from costmodel.ops.numeric_step import numeric_step, numeric_step_ref
from costmodel.records import UserError

torch.set_num_threads(1)

INTERPRETED = dispatch.INTERPRETED
SHAPES = [(1, 16, 16), (37, 48, 13), (130, 96, 47), (70, 64, 300)]  # rows, width, vocabulary: a block's parts and more
F64, F32, BF16 = torch.float64, torch.float32, torch.bfloat16
# On top of the error that eager torch makes with the same inputs; the interpreter truncates to bfloat16, a GPU rounds.
SLACK = {F64: 1e-12, F32: 2e-6, BF16: 2**-7 if INTERPRETED else 2e-6}
SIGMA = 0.3


@pytest.fixture(params=["cpu"] if INTERPRETED else [pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request, monkeypatch):
    """Where kernels run, with every output full of NaN before them."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU, and see test_kernels_when_interpreted")
    for name in ("empty", "empty_like"):
        monkeypatch.setattr(torch, name, poisoned(getattr(torch, name)))
    return request.param


def poisoned(make):
    def full_of_nan(*args, **kwargs):
        out = make(*args, **kwargs)
        return out.fill_(float("nan") if out.is_floating_point() else -77)

    return full_of_nan


def case(rows, vocabulary, *, soft=False, states=6, seed=0):
    """state, target, legal, value, y of a random grammar: a part of the tokens is legal, a part has a value, some rows
    are ignored. `soft`: two thirds of the rows want a Gaussian over all tokens but the last two."""
    g = torch.Generator().manual_seed(seed)
    legal = torch.rand(states, vocabulary, generator=g) < 0.5
    legal[:, 0] = True
    value = torch.randn(states, vocabulary, generator=g, dtype=F64).float()  # as it arrives in a kernel
    value[torch.rand(states, vocabulary, generator=g) < 0.2] = float("nan")
    state = torch.randint(0, states, (rows,), generator=g)
    target = torch.multinomial(legal.float()[state], 1, generator=g)[:, 0]
    if soft:
        target[torch.rand(rows, generator=g) < 0.67] = SOFT
    target[1::5] = IGNORED
    y = torch.randn(rows, generator=g)
    return state, target, legal, value, y


def bins_of(vocabulary):
    return Bins(torch.linspace(-2, 2, vocabulary - 1), SIGMA)


def normal(*shape, seed=1, dtype=F64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64).to(dtype)


def moved(items, device):
    return [
        x if x is None else Bins(x.edges.to(device), x.sigma) if isinstance(x, Bins) else x.to(device) for x in items
    ]


def error(got, want):
    """Largest difference as a share of the largest value; infinities and NaN must stand at the same places."""
    got, want = got.detach().cpu().double(), want.detach().cpu().double()
    finite = want.isfinite()
    assert torch.equal(got.isfinite(), finite)
    assert torch.equal(got[~finite], want[~finite])
    scale = want[finite].abs().max().clamp_min(0.1) if finite.any() else 1.0
    return float((got - want)[finite].abs().max() / scale) if finite.any() else 0.0


# ---------------------------------------------------------------------------------------------------------- references


def one_row(z, state, target, legal, value, y, bins):
    """nll and ev of one row, from the legal tokens alone."""
    tokens = [t for t in range(len(z)) if legal[state, t]]
    log_p = dict(zip(tokens, z[tokens].log_softmax(0), strict=True))
    if target == SOFT:
        normal_cdf = lambda x: 0.5 * (1 + math.erf((x - y) / (bins.sigma * math.sqrt(2))))  # noqa: E731
        edges = bins.edges.double().tolist()
        y = min(max(y, edges[0]), edges[-1])
        mass = {t: normal_cdf(edges[t + 1]) - normal_cdf(edges[t]) for t in tokens if t + 1 < len(edges)}
        nll = -sum(m * log_p[t] for t, m in mass.items()) / sum(mass.values())
    else:
        nll = -log_p[target]
    valued = [t for t in tokens if not math.isnan(value[state, t])]
    p = z[valued].softmax(0) if valued else z[:0]
    return nll, (p * value[state, valued].double()).sum()


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("vocabulary", [7, 16, 40])
def test_rows_equal_a_loop_over_legal_tokens(vocabulary, soft):
    state, target, legal, value, y = case(23, vocabulary, soft=soft)
    bins = bins_of(vocabulary)
    z = normal(23, vocabulary).requires_grad_()
    nll, ev = numeric_rows_ref(z, state, target, legal, value, y=y, bins=bins if soft else None)
    weights = normal(2, 23, seed=2)
    (got,) = torch.autograd.grad((weights[0] * nll + weights[1] * ev).sum(), z)
    total = 0.0
    for i in range(23):
        if target[i] == IGNORED:
            assert nll[i] == ev[i] == 0
            continue
        a, b = one_row(z[i], int(state[i]), int(target[i]), legal, value, float(y[i]), bins)
        assert nll[i].item() == pytest.approx(a.item(), rel=1e-10)
        assert ev[i].item() == pytest.approx(b.item(), rel=1e-10, abs=1e-12)
        total += weights[0, i] * a + weights[1, i] * b
    (want,) = torch.autograd.grad(total, z)
    assert error(got, want) < 1e-12
    assert (got[target == IGNORED] == 0).all()
    assert (got[~legal[state]] == 0).all()


@pytest.mark.parametrize("soft", [False, True])
def test_gradcheck_of_the_references(soft):
    check_gradients(numeric_rows_ref, numeric_loss_ref, soft, "cpu")


def check_gradients(rows, loss, soft, device):
    *tables, y = moved(case(5, 7, soft=soft), device)
    bins = moved([bins_of(7) if soft else None], device)[0]
    h, w, b, z = (normal(*s, seed=i).to(device).requires_grad_() for i, s in enumerate([(5, 3), (7, 3), (7,), (5, 7)]))
    weights = normal(2, 5, seed=7).to(device)
    assert torch.autograd.gradcheck(lambda z: rows(z, *tables, y=y, bins=bins), z)
    state, target, legal, value = tables
    assert torch.autograd.gradcheck(
        lambda h, w, b: loss(h, w, b, state, target, y, legal, value, *weights, bins=bins)[0], (h, w, b)
    )


def tiny_grammar():
    """Two digits of base three behind a sign, value to be added up: 18 strings, and what each is worth."""
    legal = torch.zeros(5, 5, dtype=torch.bool)
    value = torch.full((5, 5), float("nan"))
    next_state = torch.full((5, 5), -1)
    for state, tokens, worth in ((0, (3, 4), (0, -9)), (1, range(3), (0, 3, 6)), (2, range(3), (0, 1, 2))):
        for token, each in zip(tokens, worth, strict=True):
            legal[state, token], value[state, token], next_state[state, token] = True, each, state + 1
    logits = normal(40, 5, seed=5, dtype=F32)  # of every prefix, by its number
    return legal, value, next_state, logits


def written(step, uniforms, device="cpu"):
    """Value and log-probability of the string that each uniform writes, by steps."""
    legal, value, next_state, logits = (x.to(device) for x in tiny_grammar())
    uniform = uniforms.to(device)
    prefix = state = torch.zeros(len(uniform), dtype=torch.long, device=device)
    total, log_p = torch.zeros(len(uniform), device=device), torch.zeros(len(uniform), device=device)
    for _ in range(3):
        taken = step(logits[prefix], state, uniform, legal, value, next_state)
        uniform, state = taken.uniform, taken.state
        total, log_p, prefix = total + taken.value, log_p + taken.log_p, (prefix * 3 + taken.token + 1) % 40
    assert (state == 3).all()
    return total.cpu().double(), log_p.cpu().double()


def enumerated():
    """Values and probabilities of all strings of the tiny grammar, in the order of their tokens."""
    legal, value, _, logits = tiny_grammar()
    worth, mass = [], []
    for string in itertools.product((3, 4), range(3), range(3)):
        prefix, total, p = 0, 0.0, 1.0
        for state, token in enumerate(string):
            p *= logits[prefix].double().masked_fill(~legal[state], -math.inf).softmax(0)[token].item()
            total, prefix = total + value[state, token].item(), (prefix * 3 + token + 1) % 40
        worth.append(total)
        mass.append(p)
    return torch.tensor(worth, dtype=F64), torch.tensor(mass, dtype=F64)


def check_decoding(step, device):
    worth, mass = enumerated()
    assert mass.sum().item() == pytest.approx(1.0)
    count = 2000
    uniforms = (torch.arange(count, dtype=F64) + 0.5) / count
    total, log_p = written(step, uniforms, device)
    # evenly spaced uniforms: each string is written in proportion to its probability, to one in `count`
    for each, p in zip(worth, mass, strict=True):
        assert (total == each).double().mean().item() == pytest.approx(p.item(), abs=1.01 / count)
        assert log_p[total == each].exp() == pytest.approx(p.item(), rel=1e-5)
    assert total.mean().item() == pytest.approx((worth * mass).sum().item(), abs=18 * 9 / count)
    # and a uniform is a quantile in the order of the tokens
    quantile = worth[torch.searchsorted(mass.cumsum(0), uniforms)]
    assert ((quantile != total).sum() <= 2).item()


def test_steps_write_the_strings_of_a_grammar_in_proportion():
    check_decoding(numeric_step_ref, "cpu")


def test_a_step_at_the_ends_of_the_uniforms_stays_legal():
    check_ends(numeric_step_ref, "cpu")


def check_ends(step, device):
    codec = P10(mantissa_digits=2, min_exponent=-2, max_exponent=1)
    legal, next_state = torch.as_tensor(codec.mask), torch.as_tensor(codec.next_state)
    states = torch.arange(len(legal))[legal.any(-1)].repeat(4)
    uniform = torch.tensor([0.0, 0.5, 1 - 2**-53, 1.0], dtype=F64).repeat_interleave(len(states) // 4)
    z = normal(len(states), legal.shape[1], dtype=F32) * 30
    value = torch.arange(legal.shape[1]).expand(legal.shape).float()
    args = [x.to(device) for x in (z, states, uniform, legal, value, next_state)]
    got = step(*args, temperature=0.5)
    assert legal[states, got.token.cpu()].all()
    assert torch.equal(got.state.cpu(), next_state[states, got.token.cpu()])
    assert torch.equal(got.value.cpu(), got.token.cpu().float())
    assert ((got.uniform >= 0) & (got.uniform < 1)).all()
    want = (
        z.double().div(0.5).masked_fill(~legal[states], -math.inf).log_softmax(-1).gather(1, got.token.cpu()[:, None])
    )
    assert error(got.log_p, want[:, 0]) < 1e-6


def test_user_mistakes_get_one_line():
    (state, target, legal, value, _), z = case(3, 5), normal(3, 5, dtype=F32)
    with pytest.raises(UserError, match="auto, torch, triton"):
        numeric_rows(z, state, target, legal, value, impl="cuda")
    with pytest.raises(UserError, match="positive"):
        numeric_step(z, state, torch.rand(3, dtype=F64), legal, value, target, temperature=0.0)
    with pytest.raises(UserError, match="bins without y"):
        numeric_rows(z, state, target, legal, value, bins=bins_of(5))
    if not INTERPRETED:
        with pytest.raises(UserError, match=r"a tensor on cpu|no triton installed"):
            numeric_rows(z, state, target, legal, value, impl="triton")


# ------------------------------------------------------------------------------------------------------------- kernels


@pytest.mark.skipif(INTERPRETED, reason="this is that process")
def test_kernels_when_interpreted():
    pytest.importorskip("triton")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-k", "cpu", __file__],
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTEST_ADDOPTS": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) >= 40, done.stdout


def test_a_forced_kernel_says_why_it_cannot_run(device):
    state, target, legal, value, _ = moved(case(3, 5), device)
    rows = state, target, legal, value
    with pytest.raises(UserError, match=r"float16, expected one of torch\.float32"):
        numeric_rows(torch.zeros(3, 5, dtype=torch.float16, device=device), *rows, impl="triton")
    wide = torch.ones(6, 4000, device=device)
    with pytest.raises(UserError, match="4000 tokens, expected at most 2048"):
        numeric_rows(torch.zeros(3, 4000, device=device), state, target, wide.bool(), wide, impl="triton")
    nll, _ = numeric_rows(torch.zeros(3, 4000, device=device), state, target, wide.bool(), wide)
    assert nll[0].item() == pytest.approx(math.log(4000))


@pytest.mark.parametrize("soft", [False, True])
def test_gradcheck_of_the_kernels(device, soft):
    forced = lambda op: lambda *args, **kwargs: op(*args, **kwargs, impl="triton")  # noqa: E731
    check_gradients(forced(numeric_rows), forced(numeric_loss), soft, device)


def rows_of(op, z, tables, y, bins, upstream, device, **kwargs):
    """nll, ev and the gradient of z; upstream gradients (2, N) of both outputs."""
    z = z.to(device).requires_grad_()
    *tables, y, bins, upstream = moved([*tables, y, bins, upstream], device)
    nll, ev = op(z, *tables, y=y, bins=bins, **kwargs)
    (dz,) = torch.autograd.grad([nll, ev], z, [x.to(nll.dtype) for x in upstream])
    assert dz.dtype == z.dtype
    return nll, ev, dz


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("dtype", [F64, F32, BF16], ids=str)
@pytest.mark.parametrize(("rows", "_width", "vocabulary"), SHAPES)
def test_rows_kernel_is_as_exact_as_torch(device, rows, _width, vocabulary, dtype, soft):
    *tables, y = case(rows, vocabulary, soft=soft)
    bins = bins_of(vocabulary) if soft else None
    z, upstream = normal(rows, vocabulary, dtype=dtype), normal(2, rows, seed=3)
    exact = rows_of(numeric_rows_ref, z.double(), tables, y, bins, upstream, "cpu")
    eager = rows_of(numeric_rows_ref, z, tables, y, bins, upstream, device)
    ours = rows_of(numeric_rows, z, tables, y, bins, upstream, device, impl="triton")
    for got, by_torch, want in zip(ours, eager, exact, strict=True):
        assert error(got, want) <= error(by_torch, want) + SLACK[got.dtype]
    assert (ours[2][tables[1] == IGNORED] == 0).all()


def loss_of(op, h, w, b, tables, y, bins, weights, device, **kwargs):
    """loss, nll, ev and the gradients of h, w and b under an upstream gradient of -1.7."""
    inputs = [x.to(device).requires_grad_() for x in (h, w, b) if x is not None]
    state, target, legal, value, y, bins, *weights = moved([*tables, y, bins, *weights], device)
    loss, nll, ev = op(*inputs, *[None] * (b is None), state, target, y, legal, value, *weights, bins=bins, **kwargs)
    grads = torch.autograd.grad(loss, inputs, loss.new_tensor(-1.7), retain_graph=True)
    again = torch.autograd.grad(loss, inputs, loss.new_tensor(-1.7))
    assert all(torch.equal(x, y) for x, y in zip(grads, again, strict=True))  # a second pass finds all it needs
    assert [x.dtype for x in grads] == [x.dtype for x in inputs]
    assert not nll.requires_grad
    assert not ev.requires_grad
    return loss, nll, ev, *grads


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [F64, F32, BF16], ids=str)
@pytest.mark.parametrize(("rows", "width", "vocabulary"), SHAPES)
def test_loss_kernel_is_as_exact_as_torch(device, rows, width, vocabulary, dtype, bias, soft):
    *tables, y = case(rows, vocabulary, soft=soft)
    bins = bins_of(vocabulary) if soft else None
    h, w = normal(rows, width, dtype=dtype), (normal(vocabulary, width, seed=2) / width**0.5).to(dtype)
    b = normal(vocabulary, seed=4, dtype=dtype) if bias else None
    weights = normal(2, rows, seed=6)
    args = tables, y, bins, weights
    exact = loss_of(numeric_loss_ref, h.double(), w.double(), b if b is None else b.double(), *args, "cpu")
    eager = loss_of(numeric_loss_ref, h, w, b, *args, device)
    ours = loss_of(numeric_loss, h, w, b, *args, device, impl="triton")
    for got, by_torch, want in zip(ours, eager, exact, strict=True):
        # a gradient in bfloat16 is rounded twice: where it is written, and where it is scaled
        assert error(got, want) <= 1.5 * error(by_torch, want) + SLACK[got.dtype]


@pytest.mark.parametrize("dtype", [F64, F32, BF16], ids=str)
def test_rows_kernel_at_large_logits(device, dtype):
    *tables, y = case(37, 13)
    z = (normal(37, 13).sign() * 1e4).to(dtype)
    upstream = normal(2, 37, seed=3)
    exact = rows_of(numeric_rows_ref, z.double(), tables, y, None, upstream, "cpu")
    ours = rows_of(numeric_rows, z, tables, y, None, upstream, device, impl="triton")
    for got, want in zip(ours, exact, strict=True):
        assert error(got, want) <= (4e-3 if dtype == BF16 else 1e-6)


@pytest.mark.parametrize("op", [numeric_rows_ref, numeric_rows])
def test_one_legal_token_is_certain(device, op):
    state, target, legal, value, y = case(37, 13)
    legal = torch.zeros_like(legal)
    legal[:, 4], value[:, 4] = True, 2.5
    target = torch.where(target == IGNORED, IGNORED, 4)
    nll, ev, dz = rows_of(op, normal(37, 13), (state, target, legal, value), y, None, normal(2, 37, seed=3), device)
    assert (nll == 0).all()
    assert torch.equal(ev.cpu(), torch.where(target == IGNORED, 0.0, 2.5).double())
    assert (dz == 0).all()


@pytest.mark.parametrize("op", [numeric_loss_ref, numeric_loss])
def test_rows_that_are_all_ignored_have_no_loss_and_no_gradient(device, op):
    *tables, y = case(37, 13)
    tables[1] = torch.full((37,), IGNORED)
    args = tables, torch.full_like(y, float("nan")), None, normal(2, 37, seed=6)
    for x in loss_of(op, normal(37, 8), normal(13, 8), None, *args, device):
        assert (x == 0).all()


@pytest.mark.parametrize("op", [numeric_rows_ref, numeric_rows])
def test_an_illegal_target_is_infinite_and_touches_no_other_row(device, op):
    """By token, and by a Gaussian whose bins are all illegal."""
    state, target, legal, value, y = case(6, 13, states=1)
    legal[0, 3], legal[0, :3], target[:] = False, True, 0
    target[2] = 3
    bins = Bins(torch.linspace(0, 2, 5), 1e-2)  # tokens 0 .. 3
    target[4], y = SOFT, torch.full_like(y, 1.75)  # the middle of bin 3
    args = normal(6, 13), (state, target, legal, value), y, bins, normal(2, 6, seed=3), device
    nll, _, dz = rows_of(op, *args)
    assert nll.isinf().tolist() == [False, False, True, False, True, False]
    assert dz.isfinite().all()
    expected = rows_of(numeric_rows_ref, *args[:-1], "cpu")
    assert error(dz, expected[2]) < 1e-12


@pytest.mark.parametrize("op", [numeric_loss_ref, numeric_loss])
def test_a_term_of_weight_zero_is_left_out(device, op):
    """An infinite cross-entropy, an unknown y, tokens without a value: none of them reaches the loss or a gradient."""
    state, target, legal, value, y = case(6, 13, states=1)
    legal[0, 5], target[:] = False, 0
    legal[0, 0] = True
    target[3], y[2] = 5, float("nan")
    w_ce, w_ev = torch.ones(6), torch.ones(6)
    w_ce[3], w_ev[2] = 0.0, 0.0
    h, w = normal(6, 8), normal(13, 8, seed=2)
    got = loss_of(op, h, w, None, (state, target, legal, value), y, None, (w_ce, w_ev), device)
    assert all(x.isfinite().all() for i, x in enumerate(got) if i != 1)
    none = torch.full_like(value, float("nan"))
    loss, nll, ev, *_ = loss_of(op, h, w, None, (state, target, legal, none), y, None, (w_ce, 0 * w_ev), device)
    assert (ev == 0).all()
    assert loss.item() == pytest.approx(nll[w_ce > 0].sum().item())


@pytest.mark.parametrize("op", [numeric_loss_ref, numeric_loss])
def test_autocast_stays_near_float32(device, op):
    *tables, y = case(37, 13, soft=True)
    inputs = normal(37, 8, dtype=F32), normal(13, 8, seed=2, dtype=F32), normal(13, seed=4, dtype=F32)
    args = tables, y, bins_of(13), normal(2, 37, seed=6)
    exact = loss_of(numeric_loss_ref, *inputs, *args, "cpu")
    with torch.autocast(device, BF16):
        got = loss_of(op, *inputs, *args, device)
    for x, want in zip(got, exact, strict=True):
        assert 1e-5 < error(x, want) < 3e-2


def test_kernels_take_views_and_one_state_for_all(device):
    *tables, y = case(37, 13, states=1)
    wide = normal(37, 30, dtype=F32)
    upstream = normal(37, 2, seed=3).t()  # not contiguous
    ours = rows_of(numeric_rows, wide[:, 5:18], tables, y, None, upstream, device, impl="triton")
    want = rows_of(numeric_rows_ref, wide[:, 5:18].double(), tables, y, None, upstream, "cpu")
    assert max(error(a, b) for a, b in zip(ours, want, strict=True)) < 2e-6
    empty = numeric_rows(
        torch.zeros(0, 13, device=device), *(x[:0].to(device) for x in tables[:2]), *moved(tables[2:], device)
    )
    assert [len(x) for x in empty] == [0, 0]


@pytest.mark.parametrize("kind", ["grid", "digits"])
def test_a_head_learns_and_writes_the_same_through_kernels(device, kind, monkeypatch):
    from costmodel.model import decoder
    from costmodel.model.digit_head import DigitHead
    from costmodel.model.grid_head import GridHead
    from costmodel.model.losses import Targets

    torch.manual_seed(0)
    codec = LogGrid(low=-3.0, high=5.0, bins=64) if kind == "grid" else P10(mantissa_digits=2, min_exponent=-2)
    backbone = decoder.build(decoder.small_config(61, hidden_size=32, layers=2, heads=4), seed=0).to(device)
    head = (GridHead if kind == "grid" else DigitHead)(32, codec).to(device)

    samples = []

    def learned():
        with torch.device(device):
            targets = Targets(
                torch.tensor([0.7, -2.0, math.nan, 3.1]), *torch.tensor([[0, 0, 1, 0], [0, 1, 0, 0]]).bool()
            )
            place = (
                backbone,
                decoder.encode_prefix(backbone, torch.arange(20)),
                *decoder.pad([[3, 1], [1, 5], [9], [6]]),
            )
            loss, _ = head.loss(*place, targets)
            if kind == "digits":
                uniforms = torch.rand(4, 30, generator=torch.Generator(device).manual_seed(0), dtype=F64)
                samples.append(head.sample(*place, uniforms))
        return loss, *torch.autograd.grad(loss, [*head.parameters(), *backbone.base_model.parameters()])

    ours = learned()
    monkeypatch.setattr(dispatch, "_obstacle", lambda *_: "a wish for the reference")
    for got, want in zip(ours, learned(), strict=True):
        assert error(got, want) < 2e-5
    assert kind == "grid" or torch.equal(*samples)


@pytest.mark.parametrize("dtype", [F64, F32, BF16], ids=str)
@pytest.mark.parametrize(("rows", "_width", "vocabulary"), SHAPES)
def test_step_kernel_equals_its_reference(device, rows, _width, vocabulary, dtype):
    state, _, legal, value, _ = case(rows, vocabulary)
    g = torch.Generator().manual_seed(4)
    next_state = torch.randint(0, 6, legal.shape, generator=g)
    uniform = torch.rand(rows, generator=g, dtype=F64)
    args = normal(rows, vocabulary, dtype=dtype), state, uniform, legal, value, next_state
    want = numeric_step_ref(*args, temperature=0.7)
    got = numeric_step(*(x.to(device) for x in args), temperature=0.7, impl="triton")
    assert [x.dtype for x in got] == [x.dtype for x in want]
    assert torch.equal(got.token.cpu(), want.token)
    assert torch.equal(got.state.cpu(), want.state)
    assert torch.equal(got.value.cpu().nan_to_num(99), want.value.nan_to_num(99))
    assert error(got.log_p, want.log_p) < (1e-12 if dtype == F64 else 2e-6)
    assert error(got.uniform, want.uniform) < (1e-9 if dtype == F64 else 1e-3)


def test_step_kernel_writes_the_strings_of_a_grammar_in_proportion(device):
    check_decoding(numeric_step, device)
    check_ends(numeric_step, device)
