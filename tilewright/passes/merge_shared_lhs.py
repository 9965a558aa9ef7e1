"""merge-shared-lhs: products of one left-hand side with several weights become one product.

    q, k, v = x @ Wq + bq, x @ Wk + bk, x @ Wv + bv      x is read three times
    y = x @ [Wq Wk Wv] + [bq bk bv]; q, k, v = slices of y   x is read once

The weights are put side by side in @prepare, once, and the slices are addresses in the kernels that read them. Columns
of a product do not know their neighbours: every sum has the order that it had.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final, TypeAlias

from xdsl.dialects.builtin import ModuleOp
from xdsl.ir import Block, Operation, SSAValue

from tilewright.ir.dims import Expr
from tilewright.ir.graph.base import tensor
from tilewright.ir.graph.contraction import MatmulOp
from tilewright.ir.graph.elementwise import CastOp, MapOp
from tilewright.ir.graph.shape import BroadcastOp, ConcatOp, ReshapeOp, SliceOp, TransposeOp
from tilewright.ir.graph.structure import PackedOp, WeightOp
from tilewright.ir.module import functions
from tilewright.ir.passing import Context, Pass
from tilewright.passes.rewriting import erase, is_pure, order_block, sole_user, users

Key: TypeAlias = tuple[object, ...]

# the innermost numbered module that an op is inside of: "model.layers.3" of "model.layers.3.self_attn.q_proj"
_LAYER: Final = re.compile(r"(.*\.\d+)\.")


@dataclass(frozen=True)
class MergeSharedLhs(Pass):
    """Matmuls that read the same x become one: x is read once.

    min_saved: bytes of x that must be saved at the largest sizes for it to be worth a change. Products of different
    layers stay apart (their results would have to wait for each other), and so do two that meet in one expression:
    fuse makes them one kernel with two accumulators.
    """

    name: ClassVar[str] = "merge-shared-lhs"
    least: ClassVar[Mapping[str, int]] = {"min_saved": 0}
    min_saved: int = 65536

    def run(self, module: ModuleOp, ctx: Context) -> None:
        for function in [f for f in functions(module).values() if f.kind.data != "prepare"]:
            merged = False
            for products in list(_sharing(function.block)):
                merged = self._merge(products, function.block, ctx) or merged
            if merged:
                order_block(function.block)

    def _merge(self, products: Sequence[_Product], block: Block, ctx: Context) -> bool:
        first = products[0].matmul
        saved = ctx.bytes(first.a) * (len(products) - 1)
        most = ctx.at_most(saved)
        if most is not None and most < self.min_saved:
            ctx.refuse(first, f"reading {tensor(first.a)} once saves {most} bytes at most, less than {self.min_saved}")
            return False
        matmuls = [p.matmul for p in products]
        if not ctx.apply(matmuls, f"{len(products)} products of one left-hand side are one", saves=saved):
            return False

        def add(op: MatmulOp | MapOp | ConcatOp | SliceOp) -> SSAValue:
            block.insert_op_before(op, first)
            return op.out

        stated: dict[str, Any] = dict(first.properties)
        axis = 0 if first.transpose_b.data else 1
        weights = add(ConcatOp.make([m.b for m in matmuls], axis=axis, like=first))
        whole = add(MatmulOp.make(first.a, weights, like=first, **stated))
        biases = [p.bias for p in products if p.bias is not None]
        if biases:
            row = add(ConcatOp.make(biases, axis=0, like=first))
            whole = add(MapOp.make([whole, row], fn="add", like=first))
        lead, start = tensor(first.out).dims[:-1], Expr.of(0)
        for product in products:
            stop = start + tensor(product.result).dims[-1]
            part = add(
                SliceOp.make(
                    whole, starts=[*[0] * len(lead), start], stops=[*lead, stop], like=product.matmul,
                )
            )  # fmt: skip
            product.result.replace_all_uses_with(part)
            start = stop
        for product in products:
            if product.sum is not None:
                erase(product.sum)
            erase(product.matmul)
        return True


@dataclass(frozen=True)
class _Product:
    """A product with a weight; sum, bias: the addition of a weight's row that its result alone flows into, if any."""

    matmul: MatmulOp
    sum: MapOp | None = None
    bias: SSAValue | None = None

    @property
    def result(self) -> SSAValue:
        return self.matmul.out if self.sum is None else self.sum.out

    @staticmethod
    def of(matmul: MatmulOp) -> _Product:
        reader = sole_user(matmul.out)
        if isinstance(reader, MapOp) and reader.fn.data == "add" and tensor(reader.out) == tensor(matmul.out):
            whole = tensor(matmul.out)
            for bias in reader.args:
                row = tensor(bias)
                same = row.dims == whole.dims[-1:] and row.dtype == whole.dtype
                if isinstance(bias.owner, (WeightOp, PackedOp)) and same:
                    return _Product(matmul, reader, bias)
        return _Product(matmul)


def _sharing(block: Block) -> Iterator[list[_Product]]:
    """The groups of products that may become one."""
    readers: dict[str, int] = {}
    for op in block.ops:
        if isinstance(op, (WeightOp, PackedOp)):
            readers[op.label.data] = readers.get(op.label.data, 0) + len(users(op.out))
    found: dict[Key, list[_Product]] = {}
    for op in block.ops:
        if not isinstance(op, MatmulOp) or not isinstance(weight := op.b.owner, (WeightOp, PackedOp)):
            continue
        # of a weight that others read, too, a second copy would be kept
        if tensor(op.b).rank != 2 or not all(d.is_static for d in tensor(op.b).dims) or readers[weight.label.data] > 1:
            continue
        product = _Product.of(op)
        if _leaves(product.result):
            continue
        layer = _LAYER.match(op.path or "")
        key = (op.a, op.transpose_b, op.result, product.bias is not None, layer and layer[1])
        found.setdefault(key, []).append(product)
    for products in found.values():
        apart = _apart(products)
        if len(apart) > 1:
            yield apart


def _apart(products: Sequence[_Product]) -> list[_Product]:
    """Those products that meet no other one in an expression of their results alone."""
    chains = [set(_chain(p.matmul.out)) for p in products]
    return [
        product
        for number, product in enumerate(products)
        if not any(chains[number] & other for at, other in enumerate(chains) if at != number)
    ]


def _chain(value: SSAValue) -> Iterator[Operation]:
    """The pointwise ops that a value flows into, each the only reader of the one before."""
    while isinstance(op := sole_user(value), (MapOp, CastOp)):
        yield op
        value = op.out


def _leaves(value: SSAValue) -> bool:
    """Whether a value, or a view of it, is a result or a state: it would have to be copied out of its neighbours."""
    pending = [value]
    while pending:
        for op in _readers(pending.pop()):
            if not is_pure(op):
                return True
            if isinstance(op, (ReshapeOp, TransposeOp, SliceOp, BroadcastOp)):
                pending.append(op.out)
    return False


def _readers(value: SSAValue) -> Iterable[Operation]:
    return [use.operation for use in value.uses]
