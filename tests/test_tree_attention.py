"""Tree attention: every form equals the definition, and the definition equals plain attention over whole rows."""

import pytest
import torch
from torch.nn import functional as F
from torch.nn.attention.flex_attention import create_block_mask

from costmodel.ops.tree_attention import BLOCK, packed_mask, tree_attention
from costmodel.records import UserError


def case(rows=5, heads=4, groups=4, length=3, own=3, prefix=11, width=8, dtype=torch.float64, seed=0):
    g = torch.Generator().manual_seed(seed)
    shapes = [(rows, heads, length, width), *[(rows, groups, own, width)] * 2, *[(groups, prefix, width)] * 2]
    return [torch.randn(*shape, generator=g, dtype=dtype, requires_grad=True) for shape in shapes]


def whole(query, key, value, shared_key, shared_value, *, scale, places):
    """Each suffix with a copy of the prefix, through torch's own attention under a mask."""
    rows, own, prefix = len(query), key.shape[2], shared_key.shape[1]
    keys, values = (
        torch.cat([shared.expand(rows, -1, -1, -1), mine], 2)
        for shared, mine in ((shared_key, key), (shared_value, value))
    )
    seen = torch.arange(own) <= places[:, None, :, None]
    mask = torch.cat([torch.ones(*seen.shape[:3], prefix, dtype=torch.bool), seen], -1)
    return F.scaled_dot_product_attention(query, keys, values, mask, scale=scale, enable_gqa=True)


def last(rows, length, own):
    return torch.arange(own - length, own).expand(rows, length)


@pytest.mark.parametrize("impl", ["torch", "flash"])
@pytest.mark.parametrize("read", [None, 2])
def test_outputs_and_gradients_are_those_of_whole_rows(impl, read):
    length = read or 3
    args = case(length=length)
    places = None if read is None else torch.tensor([[0, 2], [1, 1], [2, 0], [0, 0], [2, 2]])
    got = tree_attention(*args, scale=0.3, places=places, impl=impl)
    want = whole(*args, scale=0.3, places=last(5, length, 3) if read is None else places)
    upstream = torch.randn(got.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert (got - want).abs().max() < 1e-12
    for a, b in zip(torch.autograd.grad(got, args, upstream), torch.autograd.grad(want, args, upstream), strict=True):
        assert (a - b).abs().max() < 1e-12


def test_grouped_heads():
    args = case(groups=2, own=5)
    got = tree_attention(*args, scale=0.3)
    assert (got - whole(*args, scale=0.3, places=last(5, 3, 5))).abs().max() < 1e-12


SIZES = [(5, 3, 3, 11), (40, 7, 7, 128), (33, 1, 9, 200), (2, 150, 150, 1), (130, 2, 2, 256)]


@pytest.mark.parametrize(("rows", "length", "own", "prefix"), SIZES)
def test_packed_rows_equal_the_definition(rows, length, own, prefix):
    args = [x.detach() for x in case(rows=rows, groups=2, length=length, own=own, prefix=prefix, dtype=torch.float32)]
    got = tree_attention(*args, scale=0.3, impl="flex")
    want = tree_attention(*args, scale=0.3, impl="torch")
    assert (got - want).abs().max() < 2e-6


@pytest.mark.parametrize(("rows", "length", "own", "prefix"), SIZES)
def test_the_written_mask_covers_what_trying_every_block_finds(rows, length, own, prefix):
    mask = packed_mask(prefix, own, last(rows, length, own))
    queries, keys = mask.seq_lengths
    assert keys == -(-prefix // BLOCK) * BLOCK + rows * own
    tried = create_block_mask(mask.mask_mod, 1, 1, queries, keys, device="cpu", BLOCK_SIZE=BLOCK)
    written, wanted = mask.to_dense().bool(), tried.to_dense().bool()
    assert not (wanted & ~written).any()
    assert (written & ~wanted).sum() <= len(written[0, 0])  # at most one block a row too many
    full = mask.full_kv_num_blocks
    assert (full == prefix // BLOCK).all()


def test_unknown_forms_are_named():
    with pytest.raises(UserError, match="expected one of auto, torch, flash, flex"):
        tree_attention(*case(), scale=1.0, impl="cuda")
    with pytest.raises(UserError, match="as many key heads"):
        tree_attention(*case(groups=2), scale=1.0, impl="flash")
