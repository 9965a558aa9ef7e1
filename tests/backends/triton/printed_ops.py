"""Kernels that together hold the ops whose printed text is more than a line, for compiling without a device."""

from __future__ import annotations

from tilewright.ir.dims import Expr
from tilewright.ir.dtypes import F32, F64, I64, U8, DType
from tilewright.ir.tile.builder import KernelBuilder
from tilewright.ir.tile.compute import PackOp, UnpackOp
from tilewright.ir.tile.lines import SortLineOp, TopkLineOp, spare_words
from tilewright.ir.tile.structure import KernelOp


def tile_orders(dtype: DType = F32) -> KernelOp:
    """The whole order of rows of 20, and their first 3."""
    b = KernelBuilder("tile_orders", ["n"])
    x = b.buffer(["n", 20], dtype)
    outputs = [b.output(["n", c], d) for c in (20, 3) for d in (dtype, I64)]
    (i,) = b.grid(["n"], [4])
    tile = b.load(b.dense(x), [i, 0], [4, 20])
    results = [*b.sort(tile, b.coordinates(0, 1, (4, 20)), 1), *b.topk(tile, 3, 1)]
    for value, output in zip(results, outputs, strict=True):
        b.store(b.cast(value, output.type.dtype), b.dense(output), [i, 0])  # type: ignore[attr-defined]
    return b.finish()


def line_orders(dtype: DType = F32) -> KernelOp:
    """The whole order of lines of n, and their first 5."""
    b = KernelBuilder("line_orders", ["m", "n"])
    x = b.buffer(["m", "n"], dtype)
    values, places = b.output(["m", "n"], dtype), b.output(["m", "n"], I64)
    best, where = b.output(["m", 5], dtype), b.output(["m", 5], I64)
    spare = b.output(["m", Expr.of("n") * (2 * spare_words(dtype))], I64)
    (i,) = b.grid(["m"], [1])
    whole = [b.dense(v) for v in (x, values, places, spare)]
    b.add(SortLineOp.make(*whole, [i, i], axis=1, descending=True, result_types=[]))
    b.add(TopkLineOp.make(b.dense(x), b.dense(best), b.dense(where), [i], axis=1, k=5, result_types=[]))
    return b.finish()


def rearranged() -> KernelOp:
    """Scans, boxes, joins and reshapes of extents that are no powers of two."""
    b = KernelBuilder("rearranged", ["n"])
    x, y = b.buffer(["n", 12], F32), b.output(["n", 12], F32)
    (i,) = b.grid(["n"], [6])
    tile = b.map("exp", b.load(b.dense(x), [i, 0], [6, 12]))
    _, tile = b.scan("linear", [tile, tile], 1)
    (tile,) = b.scan("max", [tile], 0)
    tile = b.concat([b.slice(tile, [0, 5], [6, 12]), b.slice(tile, [0, 0], [6, 5])], 1)
    tile = b.map("pow", b.reshape(b.reshape(tile, [9, 8]), [6, 12]), b.constant(1.5, [1, 1]))
    b.store(tile, b.dense(y), [i, 0])
    return b.finish()


def repacked() -> KernelOp:
    """Words of 4-bit fields taken apart and put together."""
    b = KernelBuilder("repacked", ["n"])
    x, y = b.buffer(["n", 24], U8), b.output(["n", 24], U8)
    (i,) = b.grid(["n"], [4])
    b.add(fields := UnpackOp.make(b.load(b.dense(x), [i, 0], [4, 24]), format="int4", axis=1))
    b.add(words := PackOp.make(fields.out, format="int4", axis=1))
    b.store(words.out, b.dense(y), [i, 0])
    return b.finish()


def scattered() -> KernelOp:
    """Rows added to rows that were copied."""
    b = KernelBuilder("scattered", ["m", "n"])
    x, updates, at = b.buffer([6, "n"], F32), b.buffer(["m", "n"], F32), b.buffer(["m"], I64)
    y = b.output([6, "n"], F32)
    (i,) = b.grid(["n"], [16])
    b.store(b.load(b.dense(x), [0, i], [6, 16]), b.dense(y), [0, i])
    with b.loop(0, "m", 1) as loop:
        row = b.reshape(b.load(b.dense(updates), [loop.at, i], [1, 16]), (16,))
        b.update(row, b.load(b.dense(at), [loop.at], [1]), b.dense(y), [i], 0, "add")
    return b.finish()


def product_f64() -> KernelOp:
    """A product of doubles."""
    b = KernelBuilder("product_f64", ["m"])
    x, w, y = b.buffer(["m", 24], F64), b.buffer([24, 32], F64), b.output(["m", 32], F64)
    (i,) = b.grid(["m"], [16])
    left, right = b.load(b.dense(x), [i, 0], [16, 24], 0.0), b.load(b.dense(w), [0, 0], [24, 32], 0.0)
    b.store(b.dot(left, right, b.constant(0.0, [16, 32], F64)), b.dense(y), [i, 0])
    return b.finish()


KERNELS = [product_f64(), tile_orders(), line_orders(), line_orders(I64), rearranged(), repacked(), scattered()]
