"""The tree of number strings: what merging light siblings may and may not do."""

import pytest
import torch

from costmodel.codecs.digits import P10
from costmodel.model import decode, decoder
from costmodel.model.heads import DigitHead

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
