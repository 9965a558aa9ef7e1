"""`CLike`: one loop kernel as one C function. Statements here, elementwise expressions in `expressions`."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, Final

from tilewright.backends.clike.expressions import Expressions
from tilewright.backends.clike.inlining import LONGEST_IN_PLACE, inlined_values
from tilewright.backends.clike.names import CNames
from tilewright.backends.clike.prelude import texts
from tilewright.backends.source_names import bare
from tilewright.backends.stack_scratch import check_stack_scratch
from tilewright.errors import IRError, LoweringError
from tilewright.ir.dtypes import I1, U8, DType
from tilewright.ir.loops import (
    Binary,
    Bitcast,
    Block,
    Broadcast,
    Cast,
    Compare,
    Const,
    DimValue,
    Extract,
    Fma,
    For,
    Gather,
    If,
    Load,
    LoopKernel,
    Memory,
    Prefetch,
    Reduce,
    Scatter,
    Scratch,
    Select,
    Shuffle,
    Store,
    ThreadCount,
    ThreadId,
    Unary,
    Value,
    ValueType,
    VectorConst,
)

# Stands for the lane's number in the text of a vector value.
_LANE: Final = "\0"


class CLike(Expressions):
    """Prints one kernel: `CLike(kernel).source()`.

    A dialect overrides `includes`, `head`, `buffer`, `scratch`, `unrolled` and `memory_type`, and from `Expressions`
    what it spells differently. `source` raises CapacityError where scratch does not fit the stack, LoweringError for
    kernels with matrix registers.
    """

    includes: tuple[str, ...] = ("math.h", "stdbool.h", "stdint.h", "string.h")

    def __init__(self, kernel: LoopKernel) -> None:
        super().__init__()
        self.kernel = kernel
        self.names = CNames()
        self.text: dict[Value, str] = {}  # a vector's text holds _LANE where its lane's number goes
        self.places: dict[Memory, str] = {}
        self.dims: dict[str, str] = {}
        self.tables: dict[tuple[Any, ...], tuple[str, str]] = {}  # vector constants: name and initialiser
        self.lines: list[str] = []
        self.tabs = 1
        self.inlined = inlined_values(kernel)

    # --- the dialect's own ----------------------------------------------------------------------------------------

    def head(self) -> str:
        """The function's signature, by the kernel ABI."""
        return f"void {self.kernel.name}(void **buffers, int64_t *dims, int64_t tid, int64_t nthreads)"

    def buffer(self, name: str, number: int, dtype: DType, writable: bool) -> str:
        """The declaration of a pointer to a buffer; nobody writes a read-only one while the kernel runs."""
        element = self.memory_type(dtype)
        return f"{element} *{name} = buffers[{number}];" if writable else (
            f"const {element} *restrict {name} = buffers[{number}];"
        )  # fmt: skip

    def scratch(self, name: str, scratch: Scratch) -> str:
        """The declaration of a thread's own memory."""
        start = " = {0}" if scratch.zeroed else ""
        return f"_Alignas({scratch.align}) {self.memory_type(scratch.dtype)} {name}[{max(1, scratch.elements)}]{start};"

    def unrolled(self, times: int) -> str | None:
        """A line that asks for the next loop to be unrolled, if the dialect has one."""
        return f"#pragma GCC unroll {times}"

    def memory_type(self, dtype: DType) -> str:
        """The C type of an element in memory: a predicate is a byte that is zero or not."""
        return self.type_name(U8 if dtype is I1 else dtype)

    # --- the whole ------------------------------------------------------------------------------------------------

    def source(self) -> str:
        """The kernel's C text."""
        if self.kernel.matrix:
            raise LoweringError(
                f"kernel {self.kernel.name} uses matrix registers, which C does not have",
                step="lower it for a machine whose rules describe no matrix unit",
            )
        check_stack_scratch(self.kernel)
        places: list[Memory] = [*self.kernel.buffers, *self.kernel.scratch]
        for place in places:
            self.places[place] = self.names.given(place.name)
        for dim in self.kernel.dims:
            self.dims[dim] = self.names.given(dim)
        self.block(self.kernel.body)
        body, self.lines, self.tabs = self.lines, [], 1
        for number, arg in enumerate(self.kernel.buffers):
            self.line(self.buffer(self.places[arg], number, arg.dtype, arg.writable))
        for number, dim in enumerate(self.kernel.dims):
            self.line(f"const int64_t {self.dims[dim]} = dims[{number}];")
        for scratch in self.kernel.scratch:
            self.line(self.scratch(self.places[scratch], scratch))
        for (type_, *_), (name, items) in self.tables.items():
            self.line(f"static const {self.type_name(type_.dtype)} {name}[{type_.lanes}] = {items};")
        parts = ["\n".join(f"#include <{name}>" for name in self.includes), *texts(self.helpers)]
        function = "\n".join([f"{self.head()} {{", *self.lines, *body, "}", ""])
        return "\n\n".join([*parts, function])

    def line(self, text: str) -> None:
        self.lines.append("    " * self.tabs + text)

    def lanes(self, count: int, text: Callable[[str], str]) -> None:
        """One statement for every lane: alone, or in a loop."""
        if count == 1:
            self.line(text("0"))
        else:
            self.line(f"for (int l = 0; l < {count}; ++l) {text('l')}")

    # --- values ---------------------------------------------------------------------------------------------------

    def at(self, value: Value, lane: str = _LANE) -> str:
        """The text of a value's lane."""
        found = self.text.get(value)
        if found is None:
            found = self.text[value] = self.leaf(value)
        return found.replace(_LANE, lane)

    def leaf(self, value: Value) -> str:
        match value:
            case Const(type_, number):
                return self.literal(number, type_.dtype)
            case VectorConst(type_, numbers):
                return f"{self.table(type_, numbers)}[{_LANE}]"
            case DimValue(_, name):
                return self.dims[name]
            case ThreadId():
                return "tid"
            case ThreadCount():
                return "nthreads"
        raise IRError(
            f"kernel {self.kernel.name}: a {type(value).__name__} is used outside its block", step="verify the kernel"
        )

    def table(self, type_: ValueType, numbers: Sequence[int | float]) -> str:
        """The name of a constant array that holds a vector constant, the same for equal ones."""
        key = (type_, *map(str, numbers))
        if key not in self.tables:
            items = ", ".join(self.literal(n, type_.dtype) for n in numbers)
            self.tables[key] = self.names.fresh("t"), f"{{{items}}}"
        return self.tables[key][0]

    def define(self, value: Value, text: str) -> None:
        """Gives a value its text: where it is used once, in place of a name; otherwise as a constant of its own."""
        if value in self.inlined and len(text) <= LONGEST_IN_PLACE:
            self.text[value] = text
            return
        name, lanes, type_name = self.names.fresh("v"), value.type.lanes, self.type_name(value.type.dtype)
        if lanes == 1:
            self.line(f"const {type_name} {name} = {bare(text)};")
        else:
            self.line(f"{type_name} {name}[{lanes}];")
            self.lanes(lanes, lambda at: f"{name}[{at}] = {bare(text.replace(_LANE, at))};")
        self.text[value] = name if lanes == 1 else f"{name}[{_LANE}]"

    def array(self, value: Value) -> str:
        """A new array's name, declared with a vector value's lanes in it."""
        name = self.names.fresh("v")
        self.line(f"{self.type_name(value.type.dtype)} {name}[{value.type.lanes}];")
        self.lanes(value.type.lanes, lambda at: f"{name}[{at}] = {self.at(value, at)};")
        return name

    # --- structure ------------------------------------------------------------------------------------------------

    def block(self, block: Block) -> None:
        for op in block.ops:
            _PRINT[type(op)](self, op)

    def variable(self, value: Value, hint: str, start: Value | None) -> str:
        """Declares what a loop carries or a branch gives; its text."""
        name, lanes = self.names.fresh(hint), value.type.lanes
        declared = f"{self.type_name(value.type.dtype)} {name}"
        if lanes == 1:
            self.line(f"{declared}{'' if start is None else f' = {self.at(start)}'};")
            return name
        self.line(f"{declared}[{lanes}];")
        if start is not None:
            self.lanes(lanes, lambda at: f"{name}[{at}] = {self.at(start, at)};")
        return f"{name}[{_LANE}]"

    def assign(self, targets: Sequence[str], values: Sequence[Value]) -> None:
        """Sets variables to values, all read before any is written."""
        texts_ = [self.at(v) for v in values]
        heads = [t.partition("[")[0] for t in targets]
        crossed = any(
            re.search(rf"\b{re.escape(head)}\b", text)
            for n, text in enumerate(texts_)
            for m, head in enumerate(heads)
            if m != n
        )
        if crossed:
            for n, value in enumerate(values):
                if value.type.lanes > 1:
                    texts_[n] = f"{self.array(value)}[{_LANE}]"
                else:
                    name = self.names.fresh("v")
                    self.line(f"const {self.type_name(value.type.dtype)} {name} = {texts_[n]};")
                    texts_[n] = name
        for target, text, value in zip(targets, texts_, values, strict=True):
            if target != text:
                self.lanes(
                    value.type.lanes,
                    lambda at, to=target, of=text: f"{to.replace(_LANE, at)} = {bare(of.replace(_LANE, at))};",  # type: ignore[misc]
                )

    def loop(self, op: For) -> None:
        hints = [argument.hint or "c" for argument in op.body.args]
        carried = [self.variable(v, hint, v) for v, hint in zip(op.inits, hints[1:], strict=True)]
        index = self.names.fresh(hints[0])
        if op.unroll > 1 and (pragma := self.unrolled(op.unroll)):
            self.line(pragma)
        lo, hi, step = (bare(self.at(v)) for v in (op.lo, op.hi, op.step))
        advance = f"++{index}" if step == "1" else f"{index} += {step}"
        self.line(f"for (int64_t {index} = {lo}; {index} < {hi}; {advance}) {{")
        self.text.update(zip(op.body.args, [index, *carried], strict=True))
        self.tabs += 1
        self.block(op.body)
        self.assign(carried, op.body.yields)
        self.tabs -= 1
        self.line("}")
        self.text.update(zip(op.results, carried, strict=True))

    def branch(self, op: If) -> None:
        results = [self.variable(r, r.hint or "r", None) for r in op.results]
        self.line(f"if ({bare(self.at(op.condition))}) {{")
        self.arm(op.then, results)
        if op.otherwise.ops or results:
            self.line("} else {")
            self.arm(op.otherwise, results)
        self.line("}")
        self.text.update(zip(op.results, results, strict=True))

    def arm(self, block: Block, results: Sequence[str]) -> None:
        self.tabs += 1
        self.block(block)
        self.assign(results, block.yields)
        self.tabs -= 1

    # --- ops ------------------------------------------------------------------------------------------------------

    def arithmetic(self, op: Binary) -> None:
        kind, dtype, a = op.kind, op.type.dtype, self.at(op.a)
        cheap = None
        if isinstance(op.b, Const) and dtype.is_integer:
            cheap = self.by_constant(kind, dtype, a, int(op.b.value))
        self.define(op, cheap or self.binary(kind, dtype, a, self.at(op.b)))

    def lane_of(self, op: Broadcast | Extract) -> None:
        """A scalar in every lane or a lane as a scalar: another way to read what is there."""
        text = self.at(op.a, str(op.lane) if isinstance(op, Extract) else "0")
        if re.fullmatch(r"[\w.]+(\[\d+\])?", text):
            self.text[op] = text
        else:
            self.define(op, text)

    def shuffle(self, op: Shuffle) -> None:
        a, b, lanes = op.a, op.b, op.a.type.lanes
        picked = [self.at(a, str(n)) if n < lanes else self.at(b, str(n - lanes)) for n in op.indices]
        if len(picked) == 1:
            self.define(op, picked[0])
            return
        name = self.names.fresh("v")
        self.line(f"{self.type_name(op.type.dtype)} {name}[{len(picked)}] = {{{', '.join(picked)}}};")
        self.text[op] = f"{name}[{_LANE}]"

    def reduce(self, op: Reduce) -> None:
        name, half = self.array(op.a), op.a.type.lanes // 2
        while half:
            self.lanes(half, lambda at, n=half: self.folded(op, name, at, n))  # type: ignore[misc]
            half //= 2
        self.text[op] = f"{name}[0]"

    def folded(self, op: Reduce, name: str, at: str, half: int) -> str:
        upper = f"{name}[{at} + {half}]" if at != "0" else f"{name}[{half}]"
        return f"{name}[{at}] = {bare(self.binary(op.kind, op.type.dtype, f'{name}[{at}]', upper))};"

    def bits(self, op: Bitcast) -> None:
        source, target = op.a.type, op.type
        if source.lanes == target.lanes:
            self.define(op, self.bitcast(source.dtype, target.dtype, self.at(op.a)))
            return
        held, name = self.array(op.a), self.names.fresh("v")
        self.line(f"{self.type_name(target.dtype)} {name}[{target.lanes}];")
        self.line(f"memcpy({name}, {held}, sizeof {name});")
        self.text[op] = f"{name}[{_LANE}]" if target.lanes > 1 else f"{name}[0]"

    def element(self, op: Load | Gather | Store | Scatter) -> str:
        """The element of a lane's access."""
        place, offset = self.places[op.memory], bare(self.at(op.offset))
        if isinstance(op, (Gather, Scatter)):
            return f"{place}[{offset} + {self.at(op.indices)}]"
        wide = (op.value if isinstance(op, Store) else op).type.lanes > 1
        return f"{place}[{offset}{f' + {_LANE}' if wide else ''}]"

    def load(self, op: Load | Gather) -> None:
        text = self.element(op)
        if op.type.dtype is I1:
            text = f"({text} != 0)"
        if op.mask is not None:
            fill = self.literal(0, op.type.dtype) if op.fill is None else self.at(op.fill)
            text = self.select(self.at(op.mask), text, fill)
        self.define(op, text)

    def store(self, op: Store | Scatter) -> None:
        place, value = self.element(op), self.at(op.value)

        def one(at: str) -> str:
            text = f"{place.replace(_LANE, at)} = {bare(value.replace(_LANE, at))};"
            return text if op.mask is None else f"if ({bare(self.at(op.mask, at))}) {text}"

        self.lanes(op.value.type.lanes, one)


_PRINT: Final[dict[type, Callable[[CLike, Any], None]]] = {
    Unary: lambda p, op: p.define(op, p.unary(op.kind, op.type.dtype, p.at(op.a))),
    Binary: CLike.arithmetic,
    Fma: lambda p, op: p.define(op, p.fma(op.type.dtype, p.at(op.a), p.at(op.b), p.at(op.c))),
    Compare: lambda p, op: p.define(op, p.compare(op.predicate, p.at(op.a), p.at(op.b))),
    Select: lambda p, op: p.define(op, p.select(p.at(op.condition), p.at(op.a), p.at(op.b))),
    Cast: lambda p, op: p.define(op, p.cast(op.a.type.dtype, op.type.dtype, p.at(op.a), flush=op.flush)),
    Bitcast: CLike.bits,
    Broadcast: CLike.lane_of,
    Extract: CLike.lane_of,
    Shuffle: CLike.shuffle,
    Reduce: CLike.reduce,
    Load: CLike.load,
    Gather: CLike.load,
    Store: CLike.store,
    Scatter: CLike.store,
    Prefetch: lambda p, op: None,  # C has no word for it
    For: CLike.loop,
    If: CLike.branch,
}
