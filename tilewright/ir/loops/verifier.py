"""Checks a loop kernel: types, dominance, memory, shapes of control flow. All faults of a kernel come in one error."""

from __future__ import annotations

from tilewright.errors import IRError, Problem
from tilewright.ir.dtypes import BF16, F16, F32, I32, I64
from tilewright.ir.loops import ops
from tilewright.ir.loops.kernel import LoopKernel
from tilewright.ir.loops.matrix import MatrixDot, MatrixLoad, MatrixOp, MatrixRegister, MatrixStore, MatrixZero
from tilewright.ir.loops.memory import BufferArg, Memory
from tilewright.ir.loops.values import BOOL, INDEX, LEAVES, DimValue, Value, ValueType, mask, scalar, vec

_FLOAT_UNARY = frozenset({"neg", "abs", "sqrt", "floor", "ceil", "trunc", "round", "fraction"})
_INT_UNARY = frozenset({"neg", "abs"})
_FLOAT_BINARY = frozenset({"add", "sub", "mul", "div", "min", "max", "minimum", "maximum", "scale"})
_INT_BINARY = frozenset(
    {
        "add",
        "sub",
        "mul",
        "floordiv",
        "mod",
        "truncdiv",
        "truncmod",
        "min",
        "max",
        "and",
        "or",
        "xor",
        "shl",
        "shr",
        "ushr",
    }
)
_MASK_BINARY = frozenset({"and", "or", "xor"})


def verify_kernel(kernel: LoopKernel) -> None:
    """Raises IRError listing everything wrong with the kernel; silent when it is well formed."""
    checker = _Checker(kernel)
    checker.declarations()
    checker.block(kernel.body, set())
    if kernel.body.yields or kernel.body.args:
        checker.fault("the body of a kernel takes and yields nothing", "kernel")
    if checker.problems:
        raise IRError(checker.problems, step="fix the lowering that built this kernel; print(kernel) shows it")


class _Checker:
    def __init__(self, kernel: LoopKernel) -> None:
        self.kernel = kernel
        self.problems: list[Problem] = []
        self.memories: set[Memory] = {*kernel.buffers, *kernel.scratch}

    def fault(self, text: str, op: object) -> None:
        name = op if isinstance(op, str) else type(op).__name__.lower()
        kind = getattr(op, "kind", getattr(op, "predicate", ""))
        self.problems.append(Problem(text, op=f"{self.kernel.name}: {name}{f' {kind}' if kind else ''}"))

    def declarations(self) -> None:
        names = [b.name for b in self.kernel.buffers] + [s.name for s in self.kernel.scratch] + list(self.kernel.dims)
        for name in sorted({n for n in names if names.count(n) > 1}):
            self.fault(f"the name {name!r} is used twice", "kernel")
        for scratch in self.kernel.scratch:
            if scratch.elements < 1 or scratch.align < scratch.dtype.bytes or scratch.align & (scratch.align - 1):
                self.fault(f"scratch {scratch.name}: {scratch.elements} elements aligned to {scratch.align}", "kernel")

    def block(self, block: ops.Block, outer: set[Value]) -> None:
        known = outer | set(block.args)
        for op in block.ops:
            for value in ops.operands(op):
                self.visible(value, known, op)
            self.op(op, known)
            if isinstance(op, Value):
                known.add(op)
            elif isinstance(op, (ops.For, ops.If)):
                known.update(op.results)
        for value in block.yields:
            self.visible(value, known, "yield")

    def visible(self, value: Value, known: set[Value], user: object) -> None:
        if isinstance(value, DimValue):
            if value.name not in self.kernel.dims:
                self.fault(f"the dim {value.name!r} is not a formal dim of the kernel", user)
        elif not isinstance(value, LEAVES) and value not in known:
            self.fault(f"uses a {type(value).__name__.lower()} of type {value.type} from a block it is not in", user)

    def same(self, op: object, what: str, got: ValueType, wanted: ValueType) -> None:
        if got is not wanted:
            self.fault(f"{what} is {got}, not {wanted}", op)

    def op(self, op: ops.Op, known: set[Value]) -> None:
        match op:
            case ops.Unary():
                self.unary(op)
            case ops.Binary():
                self.binary(op)
            case ops.Fma():
                for name, value in (("a", op.a), ("b", op.b), ("c", op.c)):
                    self.same(op, name, value.type, op.type)
                self.computes(op, op.type)
            case ops.Compare():
                self.same(op, "b", op.b.type, op.a.type)
                self.same(op, "the result", op.type, mask(op.a.type.lanes))
                if op.a.type.dtype in (BF16, F16):
                    self.fault(f"compares {op.a.type.dtype}, a storage dtype", op)
            case ops.Select():
                self.same(op, "a", op.a.type, op.type)
                self.same(op, "b", op.b.type, op.type)
                if op.condition.type not in (BOOL, mask(op.type.lanes)):
                    self.fault(f"chooses {op.type} by {op.condition.type}", op)
            case ops.Cast():
                self.same(op, "the result", op.type, vec(op.type.dtype, op.a.type.lanes))
            case ops.Bitcast():
                if op.a.type.bits != op.type.bits or "bool" in (op.a.type.dtype.kind, op.type.dtype.kind):
                    self.fault(f"{op.a.type} has not the bits of {op.type}", op)
            case ops.Broadcast():
                self.same(op, "the operand", op.a.type, scalar(op.type.dtype))
            case ops.Shuffle():
                self.same(op, "b", op.b.type, op.a.type)
                self.same(op, "the result", op.type, vec(op.a.type.dtype, len(op.indices)))
                if not op.indices or not all(0 <= i < 2 * op.a.type.lanes for i in op.indices):
                    self.fault(f"picks lanes {op.indices} of 2 x {op.a.type.lanes}", op)
            case ops.Extract():
                if not 0 <= op.lane < op.a.type.lanes:
                    self.fault(f"takes lane {op.lane} of {op.a.type}", op)
            case ops.Reduce():
                self.reduce(op)
            case ops.Load() | ops.Gather() | ops.Store() | ops.Scatter():
                self.access(op)
            case ops.Prefetch():
                if op.memory not in self.memories:
                    self.fault(f"{op.memory.name!r} is no memory of this kernel", op)
                self.same(op, "the offset", op.offset.type, INDEX)
            case MatrixZero() | MatrixLoad() | MatrixStore() | MatrixDot():
                self.matrix(op)
            case ops.For():
                self.loop(op, known)
            case ops.If():
                self.branch(op, known)

    def computes(self, op: object, type_: ValueType) -> None:
        if type_.dtype.kind != "float" or type_.dtype in (BF16, F16):
            self.fault(f"does not compute on {type_}", op)

    def unary(self, op: ops.Unary) -> None:
        self.same(op, "the operand", op.a.type, op.type)
        if op.kind in _FLOAT_UNARY and not (op.kind in _INT_UNARY and op.type.dtype.is_integer):
            self.computes(op, op.type)
        if (op.kind == "not" and op.type.dtype.is_float) or (op.kind == "fraction" and op.type.dtype is not F32):
            self.fault(f"does not compute on {op.type}", op)

    def binary(self, op: ops.Binary) -> None:
        self.same(op, "a", op.a.type, op.type)
        self.same(op, "b", op.b.type, op.type)
        dtype = op.type.dtype
        allowed = _FLOAT_BINARY if dtype.is_float else _INT_BINARY if dtype.is_integer else _MASK_BINARY
        if op.kind not in allowed or dtype in (BF16, F16) or (op.kind == "scale" and dtype is not F32):
            self.fault(f"does not compute on {op.type}", op)

    def reduce(self, op: ops.Reduce) -> None:
        lanes = op.a.type.lanes
        self.same(op, "the result", op.type, scalar(op.a.type.dtype))
        if lanes & (lanes - 1):
            self.fault(f"{lanes} lanes are not a power of two", op)
        dtype = op.type.dtype
        allowed = _FLOAT_BINARY if dtype.is_float else _INT_BINARY if dtype.is_integer else _MASK_BINARY
        if op.kind not in allowed or dtype in (BF16, F16):
            self.fault(f"does not compute on {op.a.type}", op)

    def access(self, op: ops.Load | ops.Gather | ops.Store | ops.Scatter) -> None:
        if op.memory not in self.memories:
            self.fault(f"{op.memory.name!r} is no memory of this kernel", op)
        self.same(op, "the offset", op.offset.type, INDEX)
        value = op.value if isinstance(op, (ops.Store, ops.Scatter)) else op
        self.same(op, "the value", value.type, vec(op.memory.dtype, value.type.lanes))
        if op.mask is not None:
            self.same(op, "the mask", op.mask.type, mask(value.type.lanes))
        if isinstance(op, (ops.Gather, ops.Scatter)):
            indices = op.indices.type
            if indices.lanes != value.type.lanes or indices.dtype not in (I32, I64):
                self.fault(f"indices are {indices} for {value.type}", op)
        if isinstance(op, (ops.Load, ops.Gather)):
            if op.fill is not None:
                self.same(op, "the fill", op.fill.type, op.type)
        elif isinstance(op.memory, BufferArg) and not op.memory.writable:
            self.fault(f"buffer {op.memory.name!r} is read-only", op)

    def matrix(self, op: MatrixOp) -> None:
        numbers = (op.sum, op.left, op.right) if isinstance(op, MatrixDot) else (op.register,)
        unknown = [n for n in numbers if not 0 <= n < len(self.kernel.matrix)]
        if unknown:
            self.fault(f"the kernel declares no matrix register {unknown[0]}", op)
            return
        shapes = [self.kernel.matrix[n] for n in numbers]
        if isinstance(op, (MatrixLoad, MatrixStore)):
            if op.memory not in self.memories:
                self.fault(f"{op.memory.name!r} is no memory of this kernel", op)
            if op.memory.dtype is not shapes[0].dtype:
                self.fault(f"register {op.register} holds {shapes[0].dtype}, the memory {op.memory.dtype}", op)
            self.same(op, "the offset", op.offset.type, INDEX)
            self.same(op, "the stride", op.stride.type, INDEX)
            if isinstance(op, MatrixStore) and isinstance(op.memory, BufferArg) and not op.memory.writable:
                self.fault(f"buffer {op.memory.name!r} is read-only", op)
        elif isinstance(op, MatrixDot):
            total, left, right = shapes
            wanted = (
                MatrixRegister(F32, total.rows, total.columns),
                MatrixRegister(BF16, total.rows, 2 * right.rows),
                MatrixRegister(BF16, right.rows, 2 * total.columns),
            )
            if (total, left, right) != wanted or len(set(numbers)) < 3:
                self.fault(f"registers {numbers} of shapes {shapes} are no product", op)

    def loop(self, op: ops.For, known: set[Value]) -> None:
        for name, value in (("lo", op.lo), ("hi", op.hi), ("step", op.step)):
            self.same(op, name, value.type, INDEX)
        if op.unroll < 1:
            self.fault(f"unroll is {op.unroll}", op)
        carried = [v.type for v in op.inits]
        for what, types in (
            ("arguments", [a.type for a in op.body.args]),
            ("yields", [INDEX, *(v.type for v in op.body.yields)]),
            ("results", [INDEX, *(v.type for v in op.results)]),
        ):
            if types != [INDEX, *carried]:
                self.fault(f"{what} {_listed(types[1:])} do not match the carries {_listed(carried)}", op)
        self.block(op.body, known)

    def branch(self, op: ops.If, known: set[Value]) -> None:
        self.same(op, "the condition", op.condition.type, BOOL)
        results = [v.type for v in op.results]
        for side, block in (("then", op.then), ("otherwise", op.otherwise)):
            if [v.type for v in block.yields] != results:
                self.fault(
                    f"{side} yields {_listed([v.type for v in block.yields])}, the results are {_listed(results)}", op
                )
            self.block(block, known)


def _listed(types: list[ValueType]) -> str:
    return "(" + ", ".join(map(str, types)) + ")"
