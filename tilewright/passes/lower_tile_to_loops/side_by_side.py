"""Several programs side by side: a loop over programs takes a few at a time, op by op.

A sum over a row is one chain of additions, each of which waits for the one before, and so is a polynomial; a program
after the other leaves most of a core idle. Programs of a grid do not depend on one another, so what one waits for is
time for the next: every op is there once for each program, and loops whose bounds the programs share are one loop.
What is the same for all of them, weights above all, is computed once. No program's own order changes, so no bit does.

What is left over at the end of the range runs one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any, Final

from tilewright.ir.loops import (
    INDEX,
    Argument,
    Block,
    BufferArg,
    For,
    Gather,
    If,
    Load,
    Op,
    Prefetch,
    Result,
    Scratch,
    Value,
    operands,
)
from tilewright.passes.lower_tile_to_loops.emission import Emission

_UNROLLED: Final = 4  # vectors of all programs that one turn of a loop handles


def side_by_side(b: Emission, loop: For, count: int) -> None:
    """Adds the loop, which carries nothing and counts by 1, to the open block: `count` turns at a time, then the rest.

    The turns must not depend on one another. Scratch is there once for each.
    """
    whole = b.mul(b.floordiv(b.max(b.sub(loop.hi, loop.lo), 0), count), count)
    split = b.add(loop.lo, whole)
    with b.loop(loop.lo, split, count, name="p") as several:
        index, *_ = loop.body.args
        copies = [_Copy({index: b.add(several.index, n)}, {}) for n in range(count)]
        for memory in dict.fromkeys(_scratch_in(loop.body)):
            for copy in copies[1:]:
                made = b.scratch(b.fresh("s"), memory.dtype, memory.elements, memory.align)
                made.zeroed = memory.zeroed
                copy.memories[memory] = made
        _Interleaving(copies).block(loop.body, b.open_ops())
    b.open_ops().append(For(split, loop.hi, loop.step, (), loop.body, (), loop.unroll))


class _Copy:
    """What the ops of one program became: values by value, scratch by scratch."""

    def __init__(self, values: dict[Value, Value], memories: dict[Scratch, Scratch]) -> None:
        self.values, self.memories = values, memories

    def of(self, thing: Any) -> Any:
        """A field of an op as this copy has it."""
        if isinstance(thing, Value):
            return self.values.get(thing, thing)
        if isinstance(thing, Scratch):
            return self.memories.get(thing, thing)
        return thing

    def op(self, op: Op) -> Op:
        """The op in this copy, with all its blocks."""
        if isinstance(op, For):
            body = self.block(op.body)
            results = tuple(Result(r.type, r.hint) for r in op.results)
            inits = tuple(self.of(v) for v in op.inits)
            made: Any = For(self.of(op.lo), self.of(op.hi), self.of(op.step), inits, body, results, op.unroll)
            self.values.update(zip(op.results, results, strict=True))
        elif isinstance(op, If):
            results = tuple(Result(r.type, r.hint) for r in op.results)
            made = If(self.of(op.condition), self.block(op.then), self.block(op.otherwise), results)
            self.values.update(zip(op.results, results, strict=True))
        else:
            made = type(op)(*(self.of(getattr(op, field.name)) for field in fields(op)))
            if isinstance(op, Value):
                self.values[op] = made
        return made  # type: ignore[no-any-return]  # of the op's own type

    def block(self, block: Block) -> Block:
        """A block with its arguments."""
        args = tuple(Argument(a.type, a.hint) for a in block.args)
        self.values.update(zip(block.args, args, strict=True))
        made = Block(args, [self.op(op) for op in block.ops])
        made.yields = tuple(self.of(v) for v in block.yields)
        return made


class _Interleaving:
    """Emits ops for all copies. varying: the values that are not the same for all programs."""

    def __init__(self, copies: Sequence[_Copy]) -> None:
        self.copies = copies
        self.varying: set[Value] = set(copies[0].values)

    def block(self, block: Block, into: list[Op]) -> None:
        """All ops of a block."""
        for op in block.ops:
            if isinstance(op, For) and not self.varying.intersection((op.lo, op.hi, op.step)):
                into.append(self.loop(op))
            elif self.shared(op):
                made = self.copies[0].op(op)
                into.append(made)
                if isinstance(op, Value) and isinstance(made, Value):
                    for copy in self.copies[1:]:
                        copy.values[op] = made
            else:
                self.varying.update(op.results if isinstance(op, (For, If)) else [op] if isinstance(op, Value) else [])
                into += [copy.op(op) for copy in self.copies]

    def shared(self, op: Op) -> bool:
        """Whether one op serves all programs."""
        if self.varying.intersection(operands(op)):
            return False
        if isinstance(op, (Load, Gather)):
            return isinstance(op.memory, BufferArg) and not op.memory.writable
        return isinstance(op, Value) or (isinstance(op, Prefetch) and isinstance(op.memory, BufferArg))

    def loop(self, op: For) -> For:
        """One loop that takes the same turn of every program."""
        first = self.copies[0]
        index = Argument(INDEX, op.body.args[0].hint)
        args: list[Argument] = [index]
        for copy in self.copies:
            copy.values[op.body.args[0]] = index
            made = [Argument(a.type, a.hint) for a in op.body.args[1:]]
            copy.values.update(zip(op.body.args[1:], made, strict=True))
            args += made
        self.varying.update(op.body.args[1:])
        inits = tuple(copy.of(v) for copy in self.copies for v in op.inits)
        body = Block(tuple(args))
        self.block(op.body, body.ops)
        body.yields = tuple(copy.of(v) for copy in self.copies for v in op.body.yields)
        results: list[Result] = []
        for copy in self.copies:
            own = [Result(r.type, r.hint) for r in op.results]
            copy.values.update(zip(op.results, own, strict=True))
            results += own
        self.varying.update(op.results)
        unroll = max(1, min(op.unroll, _UNROLLED // len(self.copies)))
        return For(first.of(op.lo), first.of(op.hi), first.of(op.step), inits, body, tuple(results), unroll)


def _scratch_in(block: Block) -> list[Scratch]:
    """The scratch that the ops of a block touch."""
    found: list[Scratch] = []
    for op in block.ops:
        if isinstance(op, For):
            found += _scratch_in(op.body)
        elif isinstance(op, If):
            found += _scratch_in(op.then) + _scratch_in(op.otherwise)
        else:
            memory = getattr(op, "memory", None)
            if isinstance(memory, Scratch):
                found.append(memory)
    return found
