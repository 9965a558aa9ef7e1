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

# Expressions up to this many characters read better in place.
_SHORT: Final = 48


def inlined_values(kernel: LoopKernel) -> dict[Value, int]:
    """For each value that may be written in place, the longest text that may be.

    They are pure, read once, and by an elementwise op, a load or a store of their own block: nothing that they read
    can have changed there.
    """
    uses: Counter[Value] = Counter()
    near: dict[Value, bool] = {}
    _count(kernel.body, uses, near)
    return {v: limit for v, limit in _candidates(kernel.body) if uses[v] == 1 and near.get(v, False)}


def _count(block: Block, uses: Counter[Value], near: dict[Value, bool]) -> None:
    here = {op for op in block.ops if isinstance(op, Value)}
    for op in block.ops:
        # a shuffle or a reduction reads its operand lane by lane, more than once
        simple = isinstance(op, (Unary, Binary, Fma, Compare, Select, Cast, Broadcast, Load, Store))
        for value in operands(op):
            uses[value] += 1
            near[value] = simple and value in here
        for inner in (op.body,) if isinstance(op, For) else (op.then, op.otherwise) if isinstance(op, If) else ():
            _count(inner, uses, near)
    uses.update(block.yields)


def _candidates(block: Block) -> list[tuple[Value, int]]:
    found: list[tuple[Value, int]] = []
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
                found.append((op, _SHORT))
    return found
