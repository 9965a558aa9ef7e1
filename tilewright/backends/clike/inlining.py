"""Which values a printed kernel writes where they are used, instead of naming them first."""

from __future__ import annotations

from collections import Counter
from typing import Final

from tilewright.ir.dtypes import I64
from tilewright.ir.loops import (
    Binary,
    Block,
    Broadcast,
    Cast,
    Compare,
    Const,
    Extract,
    Fma,
    For,
    If,
    Load,
    LoopKernel,
    Select,
    Store,
    Unary,
    Value,
    operands,
)

LONGEST_IN_PLACE: Final = 48
"""Expressions up to this many characters read better in place."""


def inlined_values(kernel: LoopKernel) -> set[Value]:
    """The values that may be written in place.

    They are pure, read once, and by an elementwise op, a load or a store of their own block: nothing that they read
    can have changed there.
    """
    uses: Counter[Value] = Counter()
    near: dict[Value, bool] = {}
    _count_uses(kernel.body, uses, near)
    return {v for v in _candidates(kernel.body) if uses[v] == 1 and near.get(v, False)}


def _count_uses(block: Block, uses: Counter[Value], near: dict[Value, bool]) -> None:
    """Adds how often values are read, and whether their last reader is one that may hold their text."""
    here = {op for op in block.ops if isinstance(op, Value)}
    for op in block.ops:
        # a shuffle or a reduction reads its operand lane by lane, more than once
        simple = isinstance(op, (Unary, Binary, Fma, Compare, Select, Cast, Broadcast, Load, Store))
        for value in operands(op):
            uses[value] += 1
            near[value] = simple and value in here
        for inner in (op.body,) if isinstance(op, For) else (op.then, op.otherwise) if isinstance(op, If) else ():
            _count_uses(inner, uses, near)
    uses.update(block.yields)


def _candidates(block: Block) -> list[Value]:
    """The values of a block and of those within it that are expressions of C."""
    found: list[Value] = []
    for op in block.ops:
        match op:
            case For():
                found += _candidates(op.body)
            case If():
                found += [*_candidates(op.then), *_candidates(op.otherwise)]
            case Select() if op.type.dtype is I64 and isinstance(op.a, Const) and isinstance(op.b, Const):
                # two small numbers make an int in C: this one is to be declared as 64 bits
                continue
            case Unary() | Binary() | Fma() | Compare() | Select() | Cast() | Broadcast() | Extract():
                found.append(op)
    return found
