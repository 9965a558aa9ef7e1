"""Which products a machine's matrix unit takes, and how their tiles are cut."""

from __future__ import annotations

from math import gcd

from xdsl.ir import BlockArgument

from tilewright.ir.dtypes import DType
from tilewright.ir.graph.attention import AttentionOp
from tilewright.ir.graph.base import tensor
from tilewright.ir.graph.contraction import MatmulOp
from tilewright.ir.graph.paging import PagedAttentionOp
from tilewright.ir.graph.paging_quantized import QuantizedPagedAttentionOp
from tilewright.ir.graph.routing import GroupedMatmulOp
from tilewright.ir.machine import Machine, MatrixUnit, TileRules


def unit_for(machine: Machine, op: MatmulOp | GroupedMatmulOp) -> MatrixUnit | None:
    """The unit that multiplies this op's packed weight; None where vectors do.

    A left-hand side that is computed on the way in ends where K does, so that K is whole steps of the unit then.
    """
    unit, k = machine.rules.matrix, op.sizes()[-1].constant
    if unit is None or not k or {tensor(op.a).dtype.name, tensor(op.b).dtype.name} != {unit.dtype}:
        return None
    if tensor(op.out).dtype.name == "f64" or machine.rules.panel % unit.columns:
        return None
    computed = not isinstance(op.a, BlockArgument)
    return None if computed and (k % unit.depth or steps_of(k, unit, machine.rules)[1] != k) else unit


Attends = AttentionOp | PagedAttentionOp | QuantizedPagedAttentionOp


def attention_unit(
    machine: Machine, op: Attends, *, dtype: DType | None = None, keys: int | None = None
) -> MatrixUnit | None:
    """The unit that takes an attention's products, in its own dtype or another, in segments of so many keys or of its
    own; None where vectors do."""
    return machine.rules.attention_unit(*_heads(op), (dtype or tensor(op.q).dtype).name, keys)


def own_segment(machine: Machine, op: Attends) -> int:
    """Keys of a segment of an attention where nothing states them."""
    return machine.rules.segment(*_heads(op), tensor(op.q).dtype.name)


def _heads(op: Attends) -> tuple[int | None, int | None]:
    return tensor(op.q).dims[-1].constant, tensor(op.out).dims[-1].constant


def is_deep(machine: Machine, op: MatmulOp, unit: MatrixUnit) -> bool:
    """Whether a product's rows lie in memory, and its K is more than the first-level cache holds pairs of.

    Then the bands of a tall tile share blocks of k; else a low tile's rows stay in that cache while pairs stream.
    """
    k = op.sizes()[-1].constant
    return k is not None and isinstance(op.a, BlockArgument) and k > 2 * machine.resident_depth(unit)


def steps_of(k: int, unit: MatrixUnit, rules: TileRules) -> tuple[int, int]:
    """The k of one chunk, a multiple of the unit's depth, and K as it is packed: whole chunks, zeros beyond K."""
    chunks = -(-k // rules.reduction_chunk)
    step = -(-k // (chunks * unit.depth)) * unit.depth
    return step, chunks * step


def tile_columns(columns: int, pairs: int, total: int, rules: TileRules) -> int:
    """The columns of a program's tile of a packed weight of `total` columns: a panel's, or those of as many panels of
    pairs as the machine's panel has room for.
    """
    return columns if pairs == 1 else gcd(total, rules.panel)


def row_tiles(rules: TileRules, unit: MatrixUnit | None, *, tall: bool = False) -> list[tuple[int | None, int]]:
    """(most rows, rows of a tile) of a product's variants, ascending.

    tall: see `is_deep`.
    """
    if unit is None:
        return [(limit, rows) for limit, rows, _ in rules.dot]
    return [(1, 1), (unit.rows, unit.rows), (None, (4 if tall else 2) * unit.rows)]
