"""Loop kernels as readable text, for people and tests; nothing parses it."""

from __future__ import annotations

from collections.abc import Iterator

from tilewright.ir.loops import ops
from tilewright.ir.loops.kernel import LoopKernel
from tilewright.ir.loops.matrix import MatrixDot, MatrixLoad, MatrixStore, MatrixZero
from tilewright.ir.loops.values import Const, DimValue, ThreadCount, ThreadId, Value, VectorConst


def print_kernel(kernel: LoopKernel) -> str:
    """The kernel, one op a line, values numbered in order of definition."""
    buffers = ", ".join(f"{b.name}: {'mut ' if b.writable else ''}{b.dtype}" for b in kernel.buffers)
    lines = [f"kernel @{kernel.name}({buffers}) dims({', '.join(kernel.dims)}) {{"]
    lines += [
        f"  scratch {s.name}: {s.dtype}[{s.elements}] align {s.align}{' zeroed' if s.zeroed else ''}"
        for s in kernel.scratch
    ]
    lines += [f"  matrix {n}: {r.dtype}[{r.rows}, {r.columns}]" for n, r in enumerate(kernel.matrix)]
    lines += _Printer().block(kernel.body, "  ")
    return "\n".join([*lines, "}"])


class _Printer:
    def __init__(self) -> None:
        self.names: dict[Value, str] = {}

    def name(self, value: Value | None) -> str:
        match value:
            case None:
                return "none"
            case Const(type_, number):
                return f"{number}" if type_.lanes == 1 else f"splat({number})"
            case VectorConst(_, values):
                return "[" + ", ".join(map(str, values)) + "]"
            case DimValue(_, name):
                return f"${name}"
            case ThreadId():
                return "$tid"
            case ThreadCount():
                return "$nthreads"
        found = self.names.get(value)
        if found is None:
            hint = getattr(value, "hint", "")
            found = self.names[value] = f"%{hint}{'_' if hint else ''}{len(self.names)}"
        return found

    def list(self, values: tuple[Value, ...]) -> str:
        return ", ".join(map(self.name, values))

    def block(self, block: ops.Block, indent: str) -> Iterator[str]:
        for op in block.ops:
            match op:
                case ops.For():
                    carries = ", ".join(
                        f"{self.name(a)} = {self.name(v)}" for a, v in zip(op.body.args[1:], op.inits, strict=True)
                    )
                    head = f"{self.list(op.results)} = " if op.results else ""
                    unroll = f" unroll {op.unroll}" if op.unroll > 1 else ""
                    bounds = f"{self.name(op.lo)}, {self.name(op.hi)}, {self.name(op.step)}"
                    yield f"{indent}{head}for {self.name(op.body.args[0])} in ({bounds}){unroll} carry({carries}) {{"
                    yield from self.block(op.body, indent + "  ")
                    yield f"{indent}}}"
                case ops.If():
                    head = f"{self.list(op.results)} = " if op.results else ""
                    yield f"{indent}{head}if {self.name(op.condition)} {{"
                    yield from self.block(op.then, indent + "  ")
                    if op.otherwise.ops or op.otherwise.yields:
                        yield f"{indent}}} else {{"
                        yield from self.block(op.otherwise, indent + "  ")
                    yield f"{indent}}}"
                case ops.Store() | ops.Scatter() | ops.Prefetch():
                    yield f"{indent}{self.call(op)}"
                case MatrixZero() | MatrixLoad() | MatrixStore() | MatrixDot():
                    yield f"{indent}{self.call(op)}"
                case _:
                    yield f"{indent}{self.name(op)} = {self.call(op)} : {op.type}"
        if block.yields:
            yield f"{indent}yield {self.list(block.yields)}"

    def call(self, op: ops.Op) -> str:
        match op:
            case ops.Unary() | ops.Binary():
                return f"{op.kind} {self.list(ops.operands(op))}"
            case ops.Compare():
                return f"{op.predicate} {self.list(ops.operands(op))}"
            case ops.Shuffle():
                return f"shuffle {self.list(ops.operands(op))} {list(op.indices)}"
            case ops.Extract():
                return f"extract {self.name(op.a)}[{op.lane}]"
            case ops.Reduce():
                return f"reduce {op.kind} {self.name(op.a)}"
            case ops.Load():
                return f"load {op.memory.name}[{self.name(op.offset)}]{self.masking(op.mask, op.fill)}"
            case ops.Gather():
                place = f"{op.memory.name}[{self.name(op.offset)} + {self.name(op.indices)}]"
                return f"gather {place}{self.masking(op.mask, op.fill)}"
            case ops.Store():
                how = "stream" if op.streaming else "store"
                return f"{how} {self.name(op.value)}, {op.memory.name}[{self.name(op.offset)}]{self.masking(op.mask)}"
            case ops.Prefetch():
                return f"prefetch {'near' if op.near else 'far'} {op.memory.name}[{self.name(op.offset)}]"
            case MatrixZero(register):
                return f"matrix {register} = 0"
            case MatrixLoad():
                return f"matrix {op.register} = {op.memory.name}[{self.list((op.offset, op.stride))}]"
            case MatrixStore():
                return f"{op.memory.name}[{self.list((op.offset, op.stride))}] = matrix {op.register}"
            case MatrixDot(total, left, right):
                return f"matrix {total} += {left} * {right}"
            case ops.Scatter():
                place = f"{op.memory.name}[{self.name(op.offset)} + {self.name(op.indices)}]"
                return f"scatter {self.name(op.value)}, {place}{self.masking(op.mask)}"
            case _:
                return f"{type(op).__name__.lower()} {self.list(ops.operands(op))}"

    def masking(self, mask: Value | None, fill: Value | None = None) -> str:
        if mask is None:
            return ""
        return f" mask {self.name(mask)}" + (f" fill {self.name(fill)}" if fill is not None else "")
