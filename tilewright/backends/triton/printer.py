"""Tile kernels as readable Triton source: `print_kernel`.

The source is one function of the grid ABI (`ir/grid_abi.py`): pointers to the buffers in declared order, then the
formal dims; one program of a one-dimensional grid is one program of the kernel's grid, in the kernel's order.

    @triton.jit
    def name(x0, x1, y0, tokens): ...

*Extents.* Triton's tensors are powers of two, and 16 at least in a dot. A tile is printed as large as that asks
(`extents.py`); what lies beyond its own extent is masked in loads and stores, replaced before a reduction or a dot's
inner sum, and ignored elsewhere. Axes of extent 1 are not printed. A tile that only stretches another is not printed.

*Order.* A dot is `tl.dot`, a row's reduction `tl.sum`: their order is the machine's own and the same in every run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from xdsl.ir import Block, SSAValue

from tilewright.backends.triton.base import Printed
from tilewright.backends.triton.extents import live_axes
from tilewright.backends.triton.functions import POINTERS, TYPES
from tilewright.backends.triton.indices import Index
from tilewright.backends.triton.prelude import texts
from tilewright.backends.triton.values import ComputeOps
from tilewright.ir.dims import Expr, product
from tilewright.ir.intervals import Interval
from tilewright.ir.tile import compute, memory, places, structure
from tilewright.ir.tile.base import buffer, tile
from tilewright.ir.tile.structure import KernelOp
from tilewright.ir.types import TileType


@dataclass(frozen=True, slots=True)
class PrintedKernel:
    """A kernel's source. signature: Triton's type of each parameter. programs: the grid's size in the formal dims."""

    symbol: str
    source: str
    signature: dict[str, str]
    programs: Expr


def print_kernel(kernel: KernelOp) -> PrintedKernel:
    """The kernel's source. Raises LoweringError for ops that are not printed."""
    return _Printer(kernel).run()


class _Printer(ComputeOps):
    """Walks a kernel once."""

    def run(self) -> PrintedKernel:
        kernel, signature = self.kernel, {}
        written = len(kernel.inputs)
        for number, value in enumerate(kernel.buffers):
            name = f"x{number}" if number < written else f"y{number - written}"
            self.buffers[value] = self.out.given(name)
            signature[self.buffers[value]] = POINTERS[buffer(value).dtype.name]
        for dim in kernel.dims.data:
            self.dims[dim] = self.out.given(dim)
            signature[self.dims[dim]] = "i64"
        origin = " ".join(filter(None, [kernel.path, kernel.loc and f"({kernel.loc})"]))
        if origin:
            self.out.line(f"# {origin}")
        self._start()
        self._block(kernel.block)
        symbol = kernel.sym_name.data
        head = f"@triton.jit\ndef {symbol}({', '.join(signature)}):"
        imports = "import triton\nimport triton.language as tl"
        parts = [imports, *texts(self.helpers), "\n".join([head, *self.out.lines])]
        return PrintedKernel(symbol, "\n\n\n".join(parts) + "\n", signature, product(kernel.programs))

    # --- the grid -------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        """Where this program's tile starts: the program's number taken apart by the kernel's order."""
        kernel = self.kernel
        counts = [self.size(programs) for programs in kernel.programs]
        sizes, starts = list(counts), ["0"] * len(counts)
        moving = [pair for pair in kernel.loops if counts[pair[0]] != "1"]
        rest = "pid"
        if moving:
            self.out.line("pid = tl.program_id(0).to(tl.int64)")
        for number, (axis, step) in enumerate(moving):
            later = {a for a, _ in moving[number + 1 :]} | {axis}
            inner = [self.out.shared("n", sizes[a]) for a in sorted(later - {axis})]
            if step > 1:
                inner.append(str(step))
            whole = " * ".join(n for n in inner if n != "1")
            if not whole:
                at, rest = rest, "0"
            else:
                whole = self.out.shared("n", whole)
                at = self.out.name("p", f"{rest} // {whole}")
                rest = self.out.name("rest", f"{rest} % {whole}")
            begun = at if step == 1 else f"{at} * {step}"
            starts[axis] = begun if starts[axis] == "0" else f"{starts[axis]} + {begun}"
            if step > 1:
                starts[axis] = self.out.shared("first", starts[axis])
                sizes[axis] = f"tl.minimum({sizes[axis]} - {starts[axis]}, {step})"
            else:
                sizes[axis] = "1"
        for axis, value in enumerate(kernel.coordinates):
            self.indices[value] = self._coordinate(axis, starts[axis])

    def _coordinate(self, axis: int, start: str) -> Index:
        extent, size = self.kernel.extents.data[axis], self.kernel.tiles.data[axis]
        if start == "0":
            return Index("0", 0, 0, extent, expr=Expr.of(0))
        text = start if size == 1 else f"({start}) * {size}" if " " in start else f"{start} * {size}"
        count = self.kernel.programs[axis].constant
        high = None if count is None else (count - 1) * size
        return Index(text if text.isidentifier() else self.out.name("i", text), 0, high, extent)

    # --- indices and control --------------------------------------------------------------------------------------

    def expr(self, op: structure.ExprOp) -> None:
        args = {f"a{n}": self.indices[a] for n, a in enumerate(op.args)}
        value = op.expr.substitute({n: i.expr for n, i in args.items() if i.expr is not None})
        alone = next((i for n, i in args.items() if value == Expr.of(n)), None)
        if alone is not None:
            self.indices[op.out] = alone
            return
        bounds: dict[str, Interval] = {**self.bounds(), **{n: i.interval for n, i in args.items()}}
        low, high = value.interval(bounds)
        symbols = {**self.dims, **{n: i.text for n, i in args.items()}}
        text = self.out.shared("i", self.math.expr(value, symbols, bounds))
        own = value if not value.symbols & set(args) else None
        self.indices[op.out] = Index(text, low, high, expr=own)

    def compare(self, op: structure.CompareOp) -> None:
        a, b = self.indices[op.a].text, self.indices[op.b].text
        self.indices[op.out] = Index(self.out.shared("c", f"tl.where({a} {op.relation.data} {b}, 1, 0)"), 0, 1)

    def variable(self, value: SSAValue, start: SSAValue) -> Printed | Index:
        """A variable that begins as a value and has all its axes."""
        if not isinstance(value.type, TileType):
            return Index(self.out.name("i", f"tl.full((), {self.indices[start].text}, tl.int64)"))
        text = self.full(start) if live_axes(start) else self.tensor(start)
        return Printed(self.out.name("c", text), live_axes(value))

    def current(self, value: SSAValue) -> str:
        """A value as a variable of its kind holds it."""
        if not isinstance(value.type, TileType):
            return f"tl.full((), {self.indices[value].text}, tl.int64)"
        return self.full(value) if live_axes(value) else self.tensor(value)

    def hold(self, value: SSAValue, variable: Printed | Index) -> None:
        if isinstance(variable, Index):
            self.indices[value] = variable
        else:
            self.tiles[value] = variable

    def assign(self, variables: list[Printed | Index], values: list[SSAValue]) -> None:
        """Sets variables, all values read before any is written."""
        pairs = [(v.text, self.current(x)) for v, x in zip(variables, values, strict=True)]
        pairs = [(name, text) for name, text in pairs if name != text]
        if pairs:
            names, given = zip(*pairs, strict=True)
            self.out.line(f"{', '.join(names)} = {', '.join(given)}")

    def loop(self, op: structure.ForOp) -> None:
        lo, hi, step = self.indices[op.lo], self.indices[op.hi], op.step.data
        variables = [self.variable(c, c) for c in op.carries]
        at = self.out.fresh("k")
        last = None
        if lo.low is not None and lo.low == lo.high and hi.high is not None:
            last = lo.low + max(0, hi.high - 1 - lo.low) // step * step
        self.indices[op.coordinate] = Index(at, lo.low, last, hi.expr)
        for value, variable in zip(op.carried, variables, strict=True):
            self.hold(value, variable)
        with self.out.block(f"for {at} in range({lo.text}, {hi.text}, {step}):"):
            self._block(op.body.blocks[0])
            self.assign(variables, list(op.yielded))
        for value, variable in zip(op.out, variables, strict=True):
            self.hold(value, variable)

    def branch(self, op: structure.IfOp) -> None:
        variables: list[Printed | Index] = []
        for value in op.out:
            if isinstance(value.type, TileType):
                zeros = f"tl.zeros({self.shape(value, live_axes(value))}, {TYPES[tile(value).dtype.name]})"
                variables.append(Printed(self.out.name("c", zeros), live_axes(value)))
            else:
                variables.append(Index(self.out.name("i", "tl.full((), 0, tl.int64)")))
        for head, region in ((f"if {self.indices[op.condition].text} != 0:", op.then), ("else:", op.otherwise)):
            block = region.blocks[0]
            last = block.last_op
            with self.out.block(head):
                self._block(block)
                self.assign(variables, list(last.operands) if last is not None else [])
        for value, variable in zip(op.out, variables, strict=True):
            self.hold(value, variable)

    def _block(self, block: Block) -> None:
        for op in block.ops:
            if isinstance(op, structure.YieldOp):
                continue
            print_op = _PRINT.get(type(op))
            if print_op is None:
                raise self.refuse(op, "this op is not printed")
            print_op(self, op)


_PRINT: Final[dict[type, Callable[[_Printer, Any], None]]] = {
    structure.ExprOp: _Printer.expr,
    structure.CompareOp: _Printer.compare,
    structure.ScalarOp: _Printer.scalar,
    structure.ForOp: _Printer.loop,
    structure.IfOp: _Printer.branch,
    memory.ViewOp: _Printer.view,
    memory.ViewWindowOp: _Printer.window,
    memory.ViewRowsOp: _Printer.rows,
    memory.ViewSegmentOp: _Printer.segment,
    memory.ViewPagesOp: _Printer.pages,
    memory.LoadOp: _Printer.load,
    places.LookupOp: _Printer.lookup,
    places.UpdateOp: _Printer.update,
    memory.StoreOp: _Printer.store,
    memory.StageOp: _Printer.stage,
    compute.ConstantOp: _Printer.constant,
    compute.SplatOp: _Printer.splat,
    compute.IndexTileOp: _Printer.coordinates,
    compute.MapOp: _Printer.map,
    compute.CastOp: _Printer.cast_,
    compute.BroadcastOp: _Printer.broadcast,
    compute.ReshapeOp: _Printer.reshape,
    compute.TransposeOp: _Printer.transpose,
    compute.SliceOp: _Printer.slice,
    compute.ConcatOp: _Printer.concat,
    compute.ReduceOp: _Printer.reduce,
    compute.AccumulateOp: _Printer.accumulate,
    compute.DotOp: _Printer.dot,
}
