"""Builds a LoopKernel: `LoopBuilder` adds memory and control flow to the arithmetic.

b = LoopBuilder("scale")
x, y = b.buffer("x", F32), b.buffer("y", F32, writable=True)
n = b.dim("n")
with b.loop(0, n, 16) as loop:
    m = b.tail_mask(b.sub(n, loop.index), 16)
    b.store(b.mul(b.load(x, loop.index, 16, mask=m), 2.0), y, loop.index, mask=m)
kernel = b.finish()
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from math import gcd
from types import TracebackType

from tilewright.errors import IRError
from tilewright.ir.dtypes import I32, I64, DType
from tilewright.ir.loops.arithmetic import Arithmetic
from tilewright.ir.loops.folding import divisor
from tilewright.ir.loops.kernel import LoopKernel
from tilewright.ir.loops.matrix import MatrixDot, MatrixLoad, MatrixRegister, MatrixStore, MatrixZero
from tilewright.ir.loops.memory import BufferArg, Memory, Scratch
from tilewright.ir.loops.operands import Operand
from tilewright.ir.loops.ops import Block, Broadcast, For, Gather, If, Load, Op, Prefetch, Scatter, Store
from tilewright.ir.loops.values import BOOL, INDEX, Argument, Const, DimValue, Result, ThreadCount, ThreadId, Value, vec


class LoopBuilder(Arithmetic):
    """One kernel under construction; `finish` hands it over."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.tid: Value = ThreadId(INDEX)
        self.nthreads: Value = ThreadCount(INDEX)
        self._buffers: list[BufferArg] = []
        self._scratch: list[Scratch] = []
        self.matrix: tuple[MatrixRegister, ...] = ()
        self._body = Block()
        self._half_branches = 0  # branches whose op is not placed yet
        self._scopes.append((self._body, {}))

    # --- declarations ---------------------------------------------------------------------------------------------

    def buffer(self, name: str, dtype: DType, *, writable: bool = False) -> BufferArg:
        """The next buffer of the ABI's array."""
        made = BufferArg(name, dtype, writable)
        self._buffers.append(made)
        return made

    def dim(self, name: str) -> Value:
        """The next formal dim, or the one of that name if declared before."""
        found = self._dims.get(name)
        if found is None:
            found = self._dims[name] = DimValue(INDEX, name)
        return found

    def fresh(self, hint: str) -> str:
        """The next name of a series, s0, s1, ..., that nothing declared so far has: users' dims may be called so."""
        taken = {*(b.name for b in self._buffers), *(s.name for s in self._scratch), *self._dims}
        return next(name for name in (f"{hint}{n}" for n in count()) if name not in taken)

    def scratch(self, name: str, dtype: DType, elements: int, align: int = 64) -> Scratch:
        """Memory of this thread's own; uninitialised unless `zeroed` is set on it before the kernel is finished."""
        made = Scratch(name, dtype, elements, align)
        self._scratch.append(made)
        return made

    def clear_scratch(self) -> None:
        """Sets `zeroed` on all scratch so far."""
        for made in self._scratch:
            made.zeroed = True

    def finish(self, *, verify: bool = True) -> LoopKernel:
        """The kernel; verified unless told otherwise."""
        from tilewright.ir.loops.verifier import verify_kernel

        if len(self._scopes) != 1:
            raise IRError(f"kernel {self.name}: a loop or branch is still open", step="leave its with block first")
        if self._half_branches:
            raise IRError(
                f"kernel {self.name}: a branch has no `otherwise`", step="add it, or use `when` for effects alone"
            )
        memory = (tuple(self._buffers), tuple(self._dims), tuple(self._scratch))
        kernel = LoopKernel(self.name, *memory, self._body, self.matrix)
        if verify:
            verify_kernel(kernel)
        return kernel

    # --- memory ---------------------------------------------------------------------------------------------------

    def load(
        self, memory: Memory, offset: Operand, lanes: int = 1, *, stride: Operand = 1,
        mask: Value | None = None, fill: Operand | None = None,
    ) -> Value:  # fmt: skip
        """memory[offset + lane * stride]; offsets and strides in elements. Lanes outside `mask` hold `fill` (0)."""
        if _backwards(stride) and lanes > 1 and (fill is None or not isinstance(fill, Value)):
            # one load of whole vectors and a shuffle, instead of a load a lane
            turned = range(lanes - 1, -1, -1)
            if mask is not None and mask.type.lanes > 1:
                mask = self.shuffle(mask, turned)
            first = self.add(self.index(offset), 1 - lanes)
            return self.shuffle(self.load(memory, first, lanes, mask=mask, fill=fill), turned)
        indices = self._strided(stride, lanes)
        if indices is not None:
            return self.gather(memory, offset, indices, mask=mask, fill=fill)
        mask, filled = self._masked(mask, fill, memory.dtype, lanes)
        made = Load(vec(memory.dtype, lanes), memory, self.index(offset), mask, filled)
        self._append(made)
        return made

    def gather(
        self, memory: Memory, offset: Operand, indices: Value, *, mask: Value | None = None, fill: Operand | None = None
    ) -> Value:
        """memory[offset + indices[lane]]; indices are i32 or i64 lanes."""
        lanes = indices.type.lanes
        if lanes == 1:
            where = self.add(self.index(offset), self.cast(indices, I64))
            return self.load(memory, where, mask=mask, fill=fill)
        mask, filled = self._masked(mask, fill, memory.dtype, lanes)
        if isinstance(mask, Broadcast):
            # one condition for all lanes: a branch, instead of one a lane where machines have no gather of the dtype
            branch, outside = self.branch(mask.a), filled or self.const(0, memory.dtype, lanes)
            with branch.then():
                branch.give(self.gather(memory, offset, indices))
            with branch.otherwise():
                branch.give(outside)
            return branch.results[0]
        made = Gather(vec(memory.dtype, lanes), memory, self.index(offset), indices, mask, filled)
        self._append(made)
        return made

    def store(
        self,
        value: Value,
        memory: Memory,
        offset: Operand,
        *,
        stride: Operand = 1,
        mask: Value | None = None,
        streaming: bool = False,
    ) -> None:
        """memory[offset + lane * stride] = value[lane]; streaming: see `Store`, and only of lanes side by side."""
        indices = self._strided(stride, value.type.lanes)
        if indices is not None:
            self.scatter(value, memory, offset, indices, mask=mask)
            return
        mask, _ = self._masked(mask, None, memory.dtype, value.type.lanes)
        self._append(Store(value, memory, self.index(offset), mask, streaming and mask is None))

    def scatter(
        self, value: Value, memory: Memory, offset: Operand, indices: Value, *, mask: Value | None = None
    ) -> None:
        """memory[offset + indices[lane]] = value[lane]; indices of set lanes are distinct."""
        lanes = indices.type.lanes
        if lanes == 1:
            self.store(value, memory, self.add(self.index(offset), self.cast(indices, I64)), mask=mask)
            return
        mask, _ = self._masked(mask, None, memory.dtype, lanes)
        self._append(Scatter(value, memory, self.index(offset), indices, mask))

    def prefetch(self, memory: Memory, offset: Operand, *, near: bool = True) -> None:
        """Asks for memory[offset] to be brought near; the place may lie outside."""
        self._append(Prefetch(memory, self.index(offset), near))

    def _strided(self, stride: Operand, lanes: int) -> Value | None:
        """The lane offsets of a strided access; None for contiguous ones."""
        if lanes == 1:
            return None
        if isinstance(stride, Value) and not isinstance(stride, Const):
            return self.mul(self.iota(lanes, I64), stride)
        step = int(stride.value if isinstance(stride, Const) else stride)
        if step == 1:
            return None
        narrow = abs(step) * lanes < 2**31
        return self.constants([lane * step for lane in range(lanes)], I32 if narrow else I64)

    def _masked(
        self, mask: Value | None, fill: Operand | None, dtype: DType, lanes: int
    ) -> tuple[Value | None, Value | None]:
        """Mask and fill as the op takes them: an all-true mask is none, a number is a constant."""
        if mask is None or (isinstance(mask, Const) and mask.value):
            return None, None
        if mask.type.lanes == 1 and lanes > 1:
            mask = self.broadcast(mask, lanes)
        if fill is not None and not isinstance(fill, Value):
            fill = self.const(fill, dtype, lanes)
        elif fill is not None and fill.type.lanes == 1:
            fill = self.broadcast(fill, lanes)
        return mask, fill

    # --- matrix registers -----------------------------------------------------------------------------------------

    def matrix_zero(self, register: int) -> None:
        """Clears a register of `matrix`, which the kernel's author sets."""
        self._append(MatrixZero(register))

    def matrix_load(self, register: int, memory: Memory, offset: Operand, stride: Operand) -> None:
        """Rows of the register from memory; offset and stride in elements."""
        self._append(MatrixLoad(register, memory, self.index(offset), self.index(stride)))

    def matrix_store(self, register: int, memory: Memory, offset: Operand, stride: Operand) -> None:
        """Rows of the register to memory."""
        self._append(MatrixStore(register, memory, self.index(offset), self.index(stride)))

    def matrix_dot(self, total: int, left: int, right: int) -> None:
        """Adds the product of two registers to a third; see `MatrixDot` for the order."""
        self._append(MatrixDot(total, left, right))

    # --- control flow ---------------------------------------------------------------------------------------------

    def loop(
        self,
        lo: Operand,
        hi: Operand,
        step: Operand = 1,
        carries: Sequence[Value] = (),
        *,
        unroll: int = 1,
        name: str = "i",
    ) -> LoopScope:
        """`with b.loop(0, n, 16, carries=[acc]) as loop:`: `loop.index`, `loop.carries`, `loop.next(...)`, then
        `loop.results` after the block."""
        return LoopScope(self, self.index(lo), self.index(hi), self.index(step), tuple(carries), unroll, name)

    def branch(self, condition: Value, *, name: str = "r") -> BranchScope:
        """`br = b.branch(p)`, then `with br.then(): ... br.give(x)` and `with br.otherwise(): ... br.give(y)`;
        `br.results` after both. For effects alone use `when`."""
        return BranchScope(self, condition, name)

    @contextmanager
    def when(self, condition: Value) -> Iterator[None]:
        """A block that runs only where the scalar predicate holds. One that is constantly true opens no block."""
        if isinstance(condition, Const) and condition.value:
            yield
            return
        scope = self.branch(condition)
        with scope.then():
            yield
        scope.close()

    def _append(self, op: Op) -> None:
        self._scopes[-1][0].ops.append(op)

    def _open(self, block: Block) -> None:
        self._scopes.append((block, {}))

    def _close(self) -> None:
        self._scopes.pop()


class LoopScope:
    """A `for` under construction; see `LoopBuilder.loop`."""

    def __init__(
        self, builder: LoopBuilder, lo: Value, hi: Value, step: Value, inits: tuple[Value, ...], unroll: int, name: str
    ) -> None:
        self._builder = builder
        self.index: Value = Argument(INDEX, name, gcd(divisor(lo), divisor(step)))
        self.carries: tuple[Value, ...] = tuple(Argument(v.type, f"c{n}") for n, v in enumerate(inits))
        body = Block((self.index, *self.carries))  # type: ignore[arg-type]  # they are Arguments
        self.results: tuple[Value, ...] = tuple(Result(v.type, f"{name}_r{n}") for n, v in enumerate(inits))
        self._op = For(lo, hi, step, inits, body, self.results, unroll)  # type: ignore[arg-type]
        self._given: tuple[Value, ...] | None = None if inits else ()

    def next(self, *values: Value) -> None:
        """The carried values of the next iteration; call it once, last."""
        self._given = values

    def __enter__(self) -> LoopScope:
        self._builder._open(self._op.body)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._builder._close()
        if error is not None:
            return
        if self._given is None or [v.type for v in self._given] != [v.type for v in self._op.inits]:
            wants, got = _types(self._op.inits), "nothing" if self._given is None else _types(self._given)
            raise IRError(
                f"loop body hands on {got}, its carries are {wants}", step="call loop.next(...) with these types"
            )
        self._op.body.yields = self._given
        self._builder._append(self._op)


class BranchScope:
    """An `if` under construction; see `LoopBuilder.branch`."""

    def __init__(self, builder: LoopBuilder, condition: Value, name: str) -> None:
        if condition.type is not BOOL:
            raise IRError(
                f"a branch takes one predicate, not {condition.type}", step="reduce the mask with `or` or `and`"
            )
        builder._half_branches += 1
        self._builder, self._condition, self._name = builder, condition, name
        self._blocks = (Block(), Block())
        self.results: tuple[Value, ...] = ()

    def then(self) -> _Arm:
        return _Arm(self, 0)

    def otherwise(self) -> _Arm:
        return _Arm(self, 1)

    def give(self, *values: Value) -> None:
        """The results of the block that is open; call it once, last."""
        self._builder._scopes[-1][0].yields = values

    def close(self) -> None:
        """Adds the op; `otherwise` does so itself when it ends."""
        then, otherwise = self._blocks
        if [v.type for v in then.yields] != [v.type for v in otherwise.yields]:
            sides = f"{_types(then.yields)} and {_types(otherwise.yields)}"
            raise IRError(f"the two sides of a branch give {sides}", step="give values of the same types")
        results = tuple(Result(v.type, f"{self._name}{n}") for n, v in enumerate(then.yields))
        self.results = results
        self._builder._append(If(self._condition, then, otherwise, results))
        self._builder._half_branches -= 1


class _Arm:
    """One side of a branch, as a context manager."""

    def __init__(self, scope: BranchScope, which: int) -> None:
        self._scope, self._which = scope, which

    def __enter__(self) -> BranchScope:
        self._scope._builder._open(self._scope._blocks[self._which])
        return self._scope

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._scope._builder._close()
        if error is None and self._which == 1:
            self._scope.close()


def _backwards(stride: Operand) -> bool:
    """A stride that is known to be -1."""
    number = stride.value if isinstance(stride, Const) else stride
    return not isinstance(number, Value) and int(number) == -1


def _types(values: Sequence[Value]) -> str:
    return "(" + ", ".join(str(v.type) for v in values) + ")"
