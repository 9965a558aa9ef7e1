"""What all parts of the printer share: texts of values and indices, their alignment, sizes, refusals."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from xdsl.ir import Block, Operation, SSAValue

from tilewright.backends.triton.extents import PrintedExtents, live_axes
from tilewright.backends.triton.functions import TYPES
from tilewright.backends.triton.indices import Index, IndexText
from tilewright.backends.triton.places import ViewText
from tilewright.backends.triton.text import Text
from tilewright.errors import LoweringError, Problem
from tilewright.ir.dims import Expr
from tilewright.ir.intervals import Interval
from tilewright.ir.operation import TwOperation
from tilewright.ir.tile.base import tile
from tilewright.ir.tile.structure import KernelOp

SHORT = 64
"""The longest text that is written where it is used."""


@dataclass(frozen=True, slots=True)
class Printed:
    """A tile value's text.

    axes: which of the tile's axes the text has, ascending; along the others it stretches. zero: axes along which the
    elements beyond the tile's extent are zeros; elsewhere they may be anything. number: a Python number, no tensor.
    """

    text: str
    axes: tuple[int, ...]
    zero: frozenset[int] = frozenset()
    number: bool = False


class Values:
    """Texts by SSA value."""

    def __init__(self, kernel: KernelOp) -> None:
        self.kernel = kernel
        self.out = Text()
        self.helpers: set[str] = set()
        self.extents = PrintedExtents(kernel)
        self.tiles: dict[SSAValue, Printed] = {}
        self.indices: dict[SSAValue, Index] = {}
        self.dots: dict[SSAValue, tuple[str, str]] = {}
        self.views: dict[SSAValue, ViewText] = {}
        self.buffers: dict[SSAValue, str] = {}
        self.written: set[str] = set()
        self.dims: dict[str, str] = {}
        self.math = IndexText(self.helpers)
        self._uses: Counter[SSAValue] = Counter(v for op in kernel.walk() for v in op.operands)

    # --- sizes and indices ----------------------------------------------------------------------------------------

    def bounds(self) -> dict[str, Interval]:
        return dict.fromkeys(self.dims, (0, None))

    def size(self, expr: Expr) -> str:
        """An expression of dims as text, named if it is more than a word."""
        text = self.math.expr(expr, self.dims, self.bounds())
        return self.out.shared("n", text)

    def name(self, hint: str, text: str) -> str:
        return self.out.name(hint, text)

    # --- tiles ----------------------------------------------------------------------------------------------------

    def shape(self, value: SSAValue, axes: tuple[int, ...]) -> str:
        """The printed extents of axes, as a tuple's text."""
        sizes = self.extents.shape(value, axes)
        return f"({', '.join(map(str, sizes))}{',' if len(sizes) == 1 else ''})"

    def aligned(self, value: SSAValue | Printed, axes: tuple[int, ...]) -> str:
        """The text of a value placed among `axes`, which include its own; it stretches along the others."""
        printed = value if isinstance(value, Printed) else self.tiles[value]
        if printed.axes == axes or not printed.axes:
            return printed.text
        return f"{printed.text}[{', '.join(':' if a in printed.axes else 'None' for a in axes)}]"

    def full(self, value: SSAValue, axes: tuple[int, ...] | None = None) -> str:
        """The text of a value with all its axes (those longer than 1) spelled out."""
        axes = live_axes(value) if axes is None else axes
        printed = self.tiles[value]
        if printed.number:
            return f"tl.full({self.shape(value, axes)}, {printed.text}, {TYPES[tile(value).dtype.name]})"
        if printed.axes == axes:
            return printed.text
        return f"tl.broadcast_to({self.aligned(printed, axes)}, {self.shape(value, axes)})"

    def tensor(self, value: SSAValue) -> str:
        """The text of a value that must be a tensor, not a number."""
        printed = self.tiles[value]
        return f"tl.full((), {printed.text}, {TYPES[tile(value).dtype.name]})" if printed.number else printed.text

    def define(self, value: SSAValue, text: str, axes: tuple[int, ...], hint: str, zero: frozenset[int]) -> None:
        """Gives a tile its text: in place where it is short and read once in its own block, else a name."""
        if not self._in_place(value) or len(text) > SHORT:
            text = self.out.name(hint, text)
        self.tiles[value] = Printed(text, axes, zero)

    def named(self, value: SSAValue, hint: str = "x") -> Printed:
        """A value whose text is a word, so that it may be repeated."""
        printed = self.tiles[value]
        if not printed.number and not printed.text.isidentifier():
            printed = Printed(self.out.name(hint, printed.text), printed.axes, printed.zero)
            self.tiles[value] = printed
        return printed

    def _in_place(self, value: SSAValue) -> bool:
        uses = list(value.uses)
        owner = value.owner
        return len(uses) == 1 and not isinstance(owner, Block) and uses[0].operation.parent is owner.parent

    def beyond(self, value: SSAValue, axis: int, axes: tuple[int, ...]) -> str | None:
        """A condition for the elements within a tile's extent along an axis; None where none are printed beyond it."""
        extent, printed = tile(value).extents[axis], self.extents.of(value, axis)
        if printed == extent:
            return None
        within = self.out.shared("inside", f"(tl.arange(0, {printed}) < {extent})")
        return self.aligned(Printed(within, (axis,)), axes)

    def within(self, value: SSAValue, axis: int, identity: str) -> str:
        """A value with what is printed beyond its extent along an axis replaced."""
        axes = live_axes(value)
        text = self.full(value, axes)
        condition = self.beyond(value, axis, axes)
        return text if condition is None else f"tl.where({condition}, {text}, {identity})"

    def refuse(self, op: Operation, reason: str) -> LoweringError:
        """The error for what this printer does not print."""
        where = op.loc if isinstance(op, TwOperation) else None
        return LoweringError(
            Problem(f"{reason}, in kernel @{self.kernel.sym_name.data}", op=op.name, where=where),
            step="compile this model with target='cpu', or give the machine's tile rules extents that fit",
        )
