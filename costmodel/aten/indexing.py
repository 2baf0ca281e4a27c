"""ATen's operators that look values up, put them somewhere or order them, as HLO's gather, scatter and sort."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from costmodel.aten.builder import Builder, Value, broadcast_dims, listed
from costmodel.aten.call import Call, Unmapped, positive
from costmodel.graph import TupleShape


def embedding(c: Call, table: Value, index: Value, *rest: Any) -> Value:
    return _take(c.b, table, index, 0)


def index_select(c: Call, x: Value, dim: int, index: Value) -> Value:
    return _take(c.b, x, index, positive(dim, x.rank))


def _take(b: Builder, x: Value, index: Value, dim: int) -> Value:
    """x along `dim` at every place of `index`, whose dimensions stand where `dim` was."""
    dims = (*x.dims[:dim], *index.dims, *x.dims[dim + 1 :])
    kept = [i for i in range(len(dims)) if not dim <= i < dim + index.rank]
    return b.emit(
        "gather", x.dtype, dims, [x, index], offset_dims=listed(kept), collapsed_slice_dims=listed([dim]),
        start_index_map=listed([dim]), index_vector_dim=str(index.rank),
        slice_sizes=listed(1 if i == dim else size for i, size in enumerate(x.dims)),
    )  # fmt: skip


def gather(c: Call, x: Value, dim: int, index: Value, **options: Any) -> Value:
    places = _places(c.b, index, positive(dim, x.rank))
    return _gather_elements(c.b, x, places, index.dims)


def _gather_elements(b: Builder, x: Value, places: Value, dims: Sequence[int]) -> Value:
    every = range(x.rank)
    return b.emit(
        "gather", x.dtype, dims, [x, places], offset_dims="{}", collapsed_slice_dims=listed(every),
        start_index_map=listed(every), index_vector_dim=str(places.rank - 1), slice_sizes=listed([1] * x.rank),
    )  # fmt: skip


def _places(b: Builder, index: Value, dim: int) -> Value:
    """For each element of `index` its full place, that along `dim` replaced by the element: (..., rank)."""
    parts = [index if i == dim else b.iota(index.dtype, index.dims, i) for i in range(index.rank)]
    return _stacked(b, parts)


def _stacked(b: Builder, parts: Sequence[Value]) -> Value:
    """Arrays of one shape side by side in a new last dimension."""
    return b.concatenate([b.reshape(p, (*p.dims, 1)) for p in parts], parts[0].rank)


def index(c: Call, x: Value, indices: Sequence[Value | None]) -> Value:
    """x[indices] where the given indices are neighbours; None keeps a dimension whole."""
    b = c.b
    given = [i for i, v in enumerate(indices) if v is not None]
    arrays = [v for v in indices if v is not None]
    if any(v.dtype == "pred" for v in arrays) or given != list(range(given[0], given[-1] + 1)):
        raise Unmapped("masks, or indices apart")
    shared: tuple[int, ...] = ()
    for array in arrays:
        shared = broadcast_dims(shared, array.dims)
    if c.wraps:
        arrays = [_from_start(b, v, x.dims[i]) for v, i in zip(arrays, given, strict=True)]
    if len(arrays) == 1:
        return _take(b, x, arrays[0], given[0])
    arrays = [b.convert(b.expand(array, shared), "s64") for array in arrays]
    first = given[0]
    dims = (*x.dims[:first], *shared, *x.dims[given[-1] + 1 :])
    kept = [i for i in range(len(dims)) if not first <= i < first + len(shared)]
    return b.emit(
        "gather", x.dtype, dims, [x, _stacked(b, arrays)], offset_dims=listed(kept),
        collapsed_slice_dims=listed(given), start_index_map=listed(given), index_vector_dim=str(len(shared)),
        slice_sizes=listed(1 if i in given else size for i, size in enumerate(x.dims)),
    )  # fmt: skip


def _from_start(b: Builder, index: Value, size: int) -> Value:
    return b.select(b.compare("LT", index, b.constant(0, index.dtype)), b.with_number("add", index, size), index)


def one_hot(c: Call, x: Value, classes: int = -1) -> Value:
    places = c.b.iota(x.dtype, c.dims, len(c.dims) - 1)
    return c.b.convert(c.b.compare("EQ", c.b.broadcast(x, c.dims, range(x.rank)), places), c.dtype)


# ----------------------------------------------------------------------------------------------------------- scatter


def scatter(opcode: str | None) -> Callable[..., Value]:
    """scatter (the update replaces; opcode None) and scatter_add: an element goes to its place along `dim`."""

    def write(c: Call, x: Value, dim: int, index: Value, update: Any, **options: Any) -> Value:
        b = c.b
        new = b.full(update, x.dtype, index.dims) if not isinstance(update, Value) else update
        if new.dims != index.dims:
            raise Unmapped("an update that is larger than its index")
        places = _places(b, index, positive(dim, x.rank))
        every = listed(range(x.rank))
        return _scattered(
            b, x, places, b.convert(new, x.dtype), opcode, update_window_dims="{}", inserted_window_dims=every,
            scatter_dims_to_operand_dims=every, index_vector_dim=str(places.rank - 1),
        )  # fmt: skip

    return write


def index_add(c: Call, x: Value, dim: int, index: Value, source: Value, *, alpha: float = 1) -> Value:
    if alpha != 1:
        raise Unmapped("alpha")
    return _put_slices(c.b, x, positive(dim, x.rank), index, source, "add")


def index_copy(c: Call, x: Value, dim: int, index: Value, source: Value) -> Value:
    return _put_slices(c.b, x, positive(dim, x.rank), index, source, None)


def index_put(c: Call, x: Value, indices: Sequence[Value | None], values: Value, accumulate: bool = False) -> Value:
    if len(indices) != 1 or indices[0] is None or indices[0].dtype == "pred" or indices[0].rank != 1:
        raise Unmapped("several indices")
    values = c.b.expand(values, (*indices[0].dims, *x.dims[1:]))
    return _put_slices(c.b, x, 0, indices[0], values, "add" if accumulate else None)


def _put_slices(b: Builder, x: Value, dim: int, index: Value, source: Value, opcode: str | None) -> Value:
    window = listed(i for i in range(x.rank) if i != dim)
    return _scattered(
        b, x, index, b.convert(source, x.dtype), opcode, update_window_dims=window, inserted_window_dims=listed([dim]),
        scatter_dims_to_operand_dims=listed([dim]), index_vector_dim=str(index.rank),
    )  # fmt: skip


def _scattered(b: Builder, x: Value, places: Value, new: Value, opcode: str | None, **numbers: str) -> Value:
    return b.emit("scatter", x.dtype, x.dims, [x, places, new], **numbers, to_apply=_combiner(b, opcode, x.dtype))


def _combiner(b: Builder, opcode: str | None, dtype: str) -> str:
    if opcode is not None:
        return b.module.reducer(opcode, dtype)
    key = ("replace", dtype)
    if key not in b.module.by_key:
        inner = b.module.computation(f"replace_{dtype}")
        inner.parameter("x", dtype, ())
        b.module.by_key[key] = b.module.finish(inner, [inner.parameter("y", dtype, ())], as_tuple=False)
    return b.module.by_key[key]


def copy(c: Call, x: Value, source: Value, *rest: Any) -> Value:
    return c.b.expand(c.b.convert(source, c.dtype), c.dims)


def select_scatter(c: Call, x: Value, source: Value, dim: int, index: int) -> Value:
    at = positive(dim, x.rank)
    index = positive(index, x.dims[at])
    return _put(c.b, x, c.b.reshape(source, (*x.dims[:at], 1, *x.dims[at + 1 :])), at, index)


def slice_scatter(
    c: Call, x: Value, source: Value, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> Value:
    if step != 1:
        raise Unmapped("steps")
    at = positive(dim, x.rank)
    return _put(c.b, x, source, at, slice(start, end).indices(x.dims[at])[0])


def _put(b: Builder, x: Value, new: Value, dim: int, start: int) -> Value:
    """x with `new` in place of what stands from `start` on."""
    new = b.convert(new, x.dtype)
    if new.dims == x.dims:
        return new
    starts = [b.constant(start if i == dim else 0, "s32") for i in range(x.rank)]
    return b.emit("dynamic-update-slice", x.dtype, x.dims, [x, new, *starts])


# ------------------------------------------------------------------------------------------------------------- order


def sort(c: Call, x: Value, dim: int = -1, descending: bool = False, **options: Any) -> list[Value]:
    return [c.b.convert(v, s.dtype) for v, s in zip(_sorted(c.b, x, dim, descending), c.out, strict=True)]


def argsort(c: Call, x: Value, dim: int = -1, descending: bool = False, **options: Any) -> Value:
    return c.done(_sorted(c.b, x, dim, descending)[1])


def topk(c: Call, x: Value, k: int, dim: int = -1, largest: bool = True, is_sorted: bool = True) -> list[Value]:
    at = positive(dim, x.rank)
    cut = [c.b.slice(v, at, 0, k) for v in _sorted(c.b, x, dim, largest)]
    return [c.b.convert(v, s.dtype) for v, s in zip(cut, c.out, strict=True)]


def _sorted(b: Builder, x: Value, dim: int, descending: bool) -> list[Value]:
    """Values and where they stood; equal ones keep their order."""
    at = positive(dim, x.rank)
    places = b.iota("s32", x.dims, at)
    shapes = [x.shape, places.shape]
    name = b.append(
        "sort", TupleShape(tuple(shapes)), [x.name, places.name],
        {"dimensions": listed([at]), "is_stable": "true", "to_apply": _order(b, x.dtype, "GT" if descending else "LT")},
    )  # fmt: skip
    return b.elements(name, shapes)


def _order(b: Builder, dtype: str, direction: str) -> str:
    key = ("order", dtype, direction)
    if key not in b.module.by_key:
        inner = b.module.computation(f"order_{dtype}")
        x, y = inner.parameter("x", dtype, ()), inner.parameter("y", dtype, ())
        for stem in ("i", "j"):
            inner.parameter(stem, "s32", ())
        b.module.by_key[key] = b.module.finish(inner, [inner.compare(direction, x, y)], as_tuple=False)
    return b.module.by_key[key]


OPERATORS: dict[str, Callable[..., Any]] = {
    "embedding": embedding, "index_select": index_select, "gather": gather, "index": index, "one_hot": one_hot,
    "scatter": scatter(None), "scatter_add": scatter("add"), "index_add": index_add, "index_copy": index_copy,
    "index_put": index_put, "copy": copy, "select_scatter": select_scatter, "slice_scatter": slice_scatter,
    "sort": sort, "argsort": argsort, "topk": topk,
}  # fmt: skip
