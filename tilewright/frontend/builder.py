"""Builds graph ops in the shapes and dtypes that torch computed for the node being lowered."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from xdsl.ir import Block, SSAValue

from tilewright.frontend.locations import module_path, of_node
from tilewright.frontend.registry import Unsupported
from tilewright.frontend.symbols import Symbols, UnknownSizeError
from tilewright.ir.attributes import Str
from tilewright.ir.dims import Expr, ExprLike
from tilewright.ir.dtypes import BF16, F16, F32, I1, I64, DType, from_torch_name
from tilewright.ir.graph.base import GraphOp, tensor
from tilewright.ir.graph.elementwise import CastOp, MapOp
from tilewright.ir.graph.reduction import ReduceOp
from tilewright.ir.graph.shape import BroadcastOp, ReshapeOp, SliceOp, TransposeOp
from tilewright.ir.graph.structure import ConstantOp, DimOp, IotaOp, PositionsOp
from tilewright.ir.operation import LOC, PATH, TwOperation
from tilewright.ir.types import TensorType


@dataclass(frozen=True)
class Weak:
    """A Python number that depends on sizes: a rank-0 f64 value that takes the other operand's dtype, as numbers do."""

    value: SSAValue


class Builder:
    """Appends ops to a block on behalf of one FX node at a time."""

    def __init__(self, block: Block, symbols: Symbols) -> None:
        self.block = block
        self.symbols = symbols
        # sizes that count the tokens of a call: queries of some attention
        self.token_dims: set[Expr] = set()
        # masks whose rule is known, by the value that holds them
        self.rules: dict[SSAValue, Any] = {}
        self.node: Any = None
        self._loc: str | None = None
        self._path: str | None = None
        self._inside: DType | None = None
        self._constants: dict[tuple[str, str], SSAValue] = {}

    def at(self, node: Any) -> None:
        """From here on ops belong to this node."""
        self.node, self._loc, self._path = node, of_node(node), module_path(node)

    @property
    def place(self) -> str | None:
        """The user's line of the node."""
        return self._loc

    # --- what torch says about the node ---------------------------------------------------------------------------

    def dtype(self, torch_dtype: Any) -> DType:
        """The IR's name of a torch dtype; Unsupported where it has none."""
        found = from_torch_name(str(torch_dtype))
        if found is None:
            raise Unsupported(f"the dtype {str(torch_dtype).removeprefix('torch.')}")
        return found

    def type_of(self, fake: Any) -> TensorType:
        """The type of a traced tensor."""
        return self.type_in(self.symbols, fake)

    def part_of(self, fake: Any) -> TensorType:
        """The type of either part of a complex traced tensor, and of a real one that of itself."""
        return self.type_in(self.symbols, fake, fake.dtype.to_real() if fake.dtype.is_complex else None)

    @staticmethod
    def type_in(symbols: Symbols, fake: Any, torch_dtype: Any = None) -> TensorType:
        """The type of a traced tensor whose sizes are these symbols'. torch_dtype: another than its own."""
        named = str(torch_dtype or fake.dtype)
        dtype = from_torch_name(named)
        if dtype is None:
            raise Unsupported(f"the dtype {named.removeprefix('torch.')}")
        try:
            return TensorType.of(symbols.dims(fake.shape), dtype)
        except UnknownSizeError as unknown:
            raise Unsupported(f"its size {unknown}") from unknown

    @property
    def result(self) -> TensorType:
        """The type torch computed for the node's (first) result."""
        value = self.node.meta["val"]
        found = self.part_of(value[0] if isinstance(value, (tuple, list)) else value)
        return found if self._inside is None else TensorType.of(found.dims, self._inside)

    @contextmanager
    def computing_in(self, dtype: DType) -> Iterator[None]:
        """Within it, the node's result is taken to have this dtype."""
        before, self._inside = self._inside, dtype
        try:
            yield
        finally:
            self._inside = before

    @property
    def is_complex(self) -> bool:
        """Whether the node's (first) result is complex; `result` is the type of its parts then."""
        value = self.node.meta["val"]
        listed = value if isinstance(value, (tuple, list)) else [value]
        return any(v.dtype.is_complex for v in listed if hasattr(v, "dtype"))

    def common_dtype(self, *operands: Any) -> DType:
        """The dtype in which torch computes a comparison of these arguments of the node (nodes or numbers)."""
        import torch

        metas = [o.meta["val"] if hasattr(o, "meta") else o for o in operands]
        # a number with a symbolic value promotes like any number of its kind
        plain = [1 if isinstance(m, torch.SymInt) else 1.0 if isinstance(m, torch.SymFloat) else m for m in metas]
        return self.dtype(torch.result_type(*plain))

    # --- ops ------------------------------------------------------------------------------------------------------

    def emit(self, op: type[GraphOp], /, *operands: Any, **properties: Any) -> SSAValue:
        """Appends an op with one result and returns that."""
        return self.add(op.make(*operands, **properties)).results[0]

    def add(self, op: GraphOp) -> GraphOp:
        """Appends an op at the node's source location."""
        self.append(op)
        return op

    def append(self, op: TwOperation) -> None:
        """`add` for ops of any dialect."""
        if self._loc:
            op.attributes[LOC] = Str(self._loc)
        if self._path:
            op.attributes[PATH] = Str(self._path)
        self.block.add_op(op)

    def constant(self, value: float, dtype: DType) -> SSAValue:
        """A rank-0 constant; equal ones are shared."""
        key = (repr(value), dtype.name)
        if key not in self._constants:
            number = bool(value) if dtype == I1 else float(value) if dtype.is_float else int(value)
            # shared between places, so it belongs to none
            made = ConstantOp.of(number, (), dtype)
            self.block.add_op(made)
            self._constants[key] = made.results[0]
        return self._constants[key]

    def full(self, value: Any, dims: Sequence[Expr], dtype: DType) -> SSAValue:
        """A tensor of one value: a number, a size or a rank-0 value."""
        if isinstance(value, (bool, int, float)):
            return self.add(ConstantOp.of(value, dims, dtype)).results[0]
        return self.broadcast(self.operand(value, dtype), dims)

    def splat(self, value: SSAValue) -> int | float | None:
        """The number that all elements of a value are known to have."""
        owner = value.owner
        if isinstance(owner, ConstantOp):
            return owner.splat
        return self.splat(owner.x) if isinstance(owner, (BroadcastOp, ReshapeOp)) else None

    def cast(self, x: SSAValue, dtype: DType) -> SSAValue:
        """x in another dtype."""
        if tensor(x).dtype == dtype:
            return x
        number = self.splat(x)
        if number is not None and isinstance(x.owner, ConstantOp):
            if not tensor(x).rank:
                return self.constant(number, dtype)
            return self.full(number, tensor(x).dims, dtype)
        return self.emit(CastOp, x, dtype=dtype.name)

    def operand(self, value: Any, dtype: DType) -> SSAValue:
        """An argument of an operator as a tensor of a dtype: a value is cast, a number becomes a rank-0 constant."""
        if isinstance(value, SSAValue):
            return self.cast(value, dtype)
        if isinstance(value, Weak):
            return self.cast(value.value, dtype)
        if isinstance(value, Expr):
            if value.constant is not None:
                return self.constant(value.constant, dtype)
            return self.cast(self.emit(DimOp, value=[value]), dtype)
        return self.constant(_wrapped(value, dtype), dtype)

    def map(self, fn: str, *operands: Any, dtype: DType | None = None) -> SSAValue:
        """A function of the scalar table on operands of one dtype (the node's result dtype unless given).

        A number that a narrow float cannot hold is kept in f32, as torch keeps it in products, quotients and
        activations: the op then runs in f32 and rounds. Where torch rounds the number, `rounded` does.
        """
        wanted = dtype or self.result.dtype
        wide = wanted in (BF16, F16) and any(_loses(value, wanted) for value in operands)
        inside = F32 if wide else wanted
        found = self.emit(MapOp, self.alike([self.operand(value, inside) for value in operands]), fn=fn)
        return self.cast(found, wanted) if wide and tensor(found).dtype == F32 else found

    def rounded(self, *values: Any) -> list[SSAValue]:
        """Numbers in the node's result dtype, as torch takes them in sums, powers and remainders; tensors, too."""
        return [self.operand(value, self.result.dtype) for value in values]

    def select(self, condition: SSAValue, a: Any, b: Any, dtype: DType) -> SSAValue:
        """a where the condition holds, else b."""
        operands = [self.cast(condition, I1), self.operand(a, dtype), self.operand(b, dtype)]
        return self.emit(MapOp, self.alike(operands), fn="select")

    def alike(self, values: Sequence[SSAValue], *, apart: int | None = None) -> list[SSAValue]:
        """Values whose sizes torch takes for equal, written alike; 1 stretches. apart: an axis where they may differ.

        Sizes that are equal in some calls alone, 2 * (h // 2) and h, become the plainest of them, and a guard.
        """
        rank = max(tensor(v).rank for v in values)
        wanted: dict[int, Expr] = {}
        for axis in range(-rank, 0):
            sizes = {tensor(v).dims[axis] for v in values if tensor(v).rank >= -axis}
            sizes = {n for n in sizes if n.constant != 1}
            if axis + rank != apart and len(sizes) > 1:
                wanted[axis] = plain = min(sizes, key=lambda n: (len(str(n)), str(n)))
                for size in sizes - {plain}:
                    self.symbols.require(plain, "==", size, self.place)
        found = []
        for value in values:
            dims = list(tensor(value).dims)
            for axis, size in wanted.items():
                if len(dims) >= -axis and dims[axis].constant != 1:
                    dims[axis] = size
            found.append(self.reshape(value, dims))
        return found

    def reshape(self, x: SSAValue, dims: Sequence[ExprLike]) -> SSAValue:
        """x under other dims."""
        wanted = tuple(Expr.of(d) for d in dims)
        return x if tensor(x).dims == wanted else self.emit(ReshapeOp, x, dims=wanted)

    def broadcast(self, x: SSAValue, dims: Sequence[ExprLike]) -> SSAValue:
        """x stretched to dims."""
        wanted = tuple(Expr.of(d) for d in dims)
        return x if tensor(x).dims == wanted else self.emit(BroadcastOp, x, dims=wanted)

    def transpose(self, x: SSAValue, permutation: Sequence[int]) -> SSAValue:
        """x with its axes in another order."""
        order = tuple(permutation)
        return x if order == tuple(range(len(order))) else self.emit(TransposeOp, x, permutation=order)

    def swap(self, x: SSAValue, a: int, b: int) -> SSAValue:
        """x with two axes exchanged."""
        order = list(range(tensor(x).rank))
        order[a], order[b] = order[b], order[a]
        return self.transpose(x, order)

    def slice(self, x: SSAValue, axis: int, start: ExprLike, stop: ExprLike, step: int = 1) -> SSAValue:
        """Part of one axis."""
        dims = tensor(x).dims
        starts, stops = [Expr.of(0)] * len(dims), list(dims)
        starts[axis], stops[axis] = Expr.of(start), Expr.of(stop)
        if (starts[axis], stops[axis], step) == (Expr.of(0), dims[axis], 1):
            return x
        steps = [step if i == axis else 1 for i in range(len(dims))]
        return self.emit(SliceOp, x, starts=starts, stops=stops, steps=steps)

    def reduce(self, fn: str, x: SSAValue, axes: Sequence[int], *, keepdims: bool = False) -> SSAValue:
        """Axes folded by a function; none given changes nothing."""
        return self.emit(ReduceOp, x, fn=fn, axes=tuple(axes), keepdims=keepdims) if axes else x

    def iota(self, dims: Sequence[Expr], axis: int, dtype: DType = I64, start: ExprLike = 0, step: int = 1) -> SSAValue:
        """start + step * index along an axis."""
        made = IotaOp.make(axis=axis, start=[Expr.of(start)], step=step, result_types=[TensorType.of(dims, dtype)])
        return self.add(made).results[0]

    def count(self, length: Expr, start: int | Expr, step: int, dtype: DType) -> SSAValue:
        """start, start + step, ...: the positions of a call's tokens where it counts those, else plain numbers."""
        if length in self.token_dims and step == 1 and isinstance(start, int) and dtype.is_integer:
            positions = self.add(PositionsOp.make(result_types=[TensorType.of([length], I64)])).results[0]
            return self.cast(self.map("add", positions, start, dtype=I64) if start else positions, dtype)
        return self.iota([length], 0, dtype, start, step)

    def fit(self, value: SSAValue, wanted: TensorType) -> SSAValue:
        """The value in the type torch computed: equal dims that are written differently become torch's."""
        value = self.cast(value, wanted.dtype)
        return self.reshape(value, wanted.dims)


def axis_of(axis: int, rank: int) -> int:
    """An axis counted from the front; a scalar counts as one axis, as in torch."""
    return axis + max(rank, 1) if axis < 0 else axis


def axes_of(axes: Any, rank: int) -> tuple[int, ...]:
    """Axes counted from the front; None or an empty list means all of them."""
    if axes is None or (isinstance(axes, (list, tuple)) and not axes):
        return tuple(range(rank))
    listed = axes if isinstance(axes, (list, tuple)) else [axes]
    return tuple(axis_of(a, rank) for a in listed) if rank else ()


def _wrapped(value: Any, dtype: DType) -> Any:
    """A Python integer as torch puts it into an integer dtype: modulo the dtype's range."""
    if not isinstance(value, int) or isinstance(value, bool) or not dtype.is_integer:
        return value
    low = -(1 << (dtype.bits - 1)) if dtype.kind == "int" else 0
    return (value - low) % (1 << dtype.bits) + low


def _loses(value: Any, dtype: DType) -> bool:
    """Whether a number changes when rounded to a narrow float."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return isinstance(value, (Weak, Expr))
    import numpy as np

    if not np.isfinite(value):
        return False
    with np.errstate(over="ignore"):
        return float(np.array(value, np.float64).astype(dtype.numpy())) != float(value)
