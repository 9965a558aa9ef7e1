"""Where slices begin and end when that depends on sizes: clamped as torch does, with the sign settled at capture."""

from __future__ import annotations

from typing import Any, Final

from tilewright.frontend.locations import of_node
from tilewright.frontend.proving import at_most, nonnegative
from tilewright.frontend.symbols import Symbols, UnknownSizeError
from tilewright.ir.dims import Expr, ceildiv, maximum, minimum

_END: Final = 2**62  # torch writes "to the end" as the largest i64
_SLICES: Final = ("aten.slice.Tensor", "aten.slice_copy.Tensor")


def from_the_front(symbols: Symbols, value: Any, size: Expr, where: str | None = None) -> Expr:
    """An index as counted from the front: negative ones count from the end.

    An index that is negative for some of the declared sizes only is what it is in the user's example, and its sign
    becomes a requirement.
    """
    index = Expr.of(value)
    negative = symbols.space.compare(index, "<", 0)
    if negative is None and not nonnegative(symbols.space, index):
        negative = index.evaluate(symbols.own) < 0
        symbols.require(*((index, "<", Expr.of(0)) if negative else (Expr.of(0), "<=", index)), where)
    return index + size if negative else index


def bound(symbols: Symbols, value: Any, size: Expr, *, default: Expr, where: str | None = None) -> Expr:
    """A slice's start or end inside 0..size: negative ones count from the end, others are clamped."""
    if value is None:
        return default
    if isinstance(value, int) and abs(value) >= _END:
        return size if value > 0 else Expr.of(0)
    index = from_the_front(symbols, value, size, where)
    if not at_most(symbols.space, index, size):
        index = minimum(index, size)
    return index if nonnegative(symbols.space, index) else maximum(index, 0)


def name_slices(symbols: Symbols, program: Any) -> None:
    """Gives the slices whose bounds torch could not order their sizes: torch makes up a symbol for each."""
    for module in program.graph_module.modules():
        for node in module.graph.nodes if hasattr(module, "graph") else ():
            if str(node.target) in _SLICES:
                _name(symbols, node)


def _name(symbols: Symbols, node: Any) -> None:
    value = node.meta["val"]
    given: tuple[Any, ...] = (*node.args, *(0, None, None, 1)[len(node.args) - 1 :])
    source, axis, start, end, step = given
    axis += value.dim() if axis < 0 else 0
    made = getattr(getattr(value.shape[axis], "node", None), "expr", None)
    if made is None or not symbols.is_unnamed(made):
        return
    where = of_node(node)
    try:
        size = symbols.size(source.meta["val"].shape[axis])
        start, end = (_index(symbols, index) for index in (start, end))
    except UnknownSizeError:
        return
    first = bound(symbols, start, size, default=Expr.of(0), where=where)
    last = bound(symbols, end, size, default=size, where=where)
    length = last - first if at_most(symbols.space, first, last) else maximum(last - first, 0)
    symbols.names[made] = ceildiv(length, step)


def _index(symbols: Symbols, index: Any) -> Any:
    return symbols.size(index.meta["val"]) if hasattr(index, "meta") else index
