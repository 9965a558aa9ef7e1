"""approximate-attention: heads whose logits are known to be small attend by a polynomial, where that is proved to be
near enough and faster.

Never a default. Calibration says how large scale |q| |k| was on the user's own inputs; a head is approximated where the
error that `certificate.py` proves for logits of that size and a margin is below eps. What calibration saw proves
nothing of other inputs: every call computes scale |q| |k| anew, and a key head where it is larger, or whose keys are
fewer than pay, is exact in that call.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, ClassVar, Final

from xdsl.dialects.builtin import ModuleOp
from xdsl.ir import SSAValue

from tilewright.errors import PassOptionError
from tilewright.ir.dims import Expr, ExprLike
from tilewright.ir.dtypes import F32, F64, I64, DType
from tilewright.ir.graph.attention import AttentionOp
from tilewright.ir.graph.base import tensor
from tilewright.ir.graph.elementwise import CastOp, MapOp
from tilewright.ir.graph.polynomial_attention import PolynomialAttentionOp
from tilewright.ir.graph.reduction import ReduceOp
from tilewright.ir.graph.shape import ConcatOp, ReshapeOp, SliceOp
from tilewright.ir.graph.structure import ConstantOp, DimOp
from tilewright.ir.module import functions
from tilewright.ir.operation import TwOperation
from tilewright.ir.passing import Context, Pass
from tilewright.passes.approximate_attention.certificate import Polynomial, largest_bound
from tilewright.passes.approximate_attention.chains import block_sizes, chain_of, crossover
from tilewright.passes.attention_tiling import judged_at
from tilewright.passes.attention_tiling.sizes import Sizes, placed
from tilewright.passes.rewriting import erase

# what a bound may be exceeded by before a call becomes exact: inputs like those of the calibration seldom do
MARGIN: Final = 1.25
# norms are sums in f32: what they may be too small by
_SLACK: Final = 1e-3


@dataclass(frozen=True)
class ApproximateAttention(Pass):
    """Attention of some heads by a polynomial of degree 2, within a stated error.

    eps: the largest error of an element of the result, in largest magnitudes of v. bounds: of scale |q| |k|, of every
    query head of every attention in the order of the module (`tw.calibrate_attention`). crossover: keys from which on
    to approximate; 0: as predicted.
    """

    name: ClassVar[str] = "approximate-attention"
    least: ClassVar[dict[str, int]] = {"crossover": 0}
    eps: float = 0.01
    bounds: tuple[float, ...] = ()
    crossover: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.eps > 0:
            raise PassOptionError(
                f"{self.name}: eps={self.eps} is not above 0", step="write eps=0.01, or leave the pass out for 0"
            )

    def run(self, module: ModuleOp, ctx: Context) -> None:
        found = [op for f in functions(module).values() for op in f.walk() if isinstance(op, AttentionOp)]
        heads = [tensor(op.q).dims[-3].constant or 0 for op in found]
        if sum(heads) != len(self.bounds):
            raise PassOptionError(
                f"{self.name}: {len(self.bounds)} bounds, and the module's {len(found)} attentions have {sum(heads)} "
                "heads",
                step="calibrate this model, with these options: tw.calibrate_attention(model, calls)",
            )
        start = 0
        for op, count in zip(found, heads, strict=True):
            self._weigh(op, self.bounds[start : start + count], ctx)
            start += count

    def _weigh(self, op: AttentionOp, bounds: Sequence[float], ctx: Context) -> None:
        """Approximates what may be, and says of every head why not or how."""
        why = unfit(op, ctx)
        if why is not None:
            ctx.refuse(op, f"all heads are exact: {why}")
            return
        sizes = Sizes.of(op, judged_at(op, ctx.dims)[0])
        dtype, most = tensor(op.q).dtype.name, ctx.at_most(tensor(op.k).dims[-2]) or 0
        blocks = chain_of(ctx.machine, sizes.features, sizes.value_features, sizes.width)
        if not blocks:
            ctx.refuse(op, "all heads are exact: no kernel's memory holds the sums of a block of features (regime C)")
            return
        begins = self.crossover or crossover(sizes, blocks, ctx.machine, most)
        if begins is None or begins > most:
            least = crossover(sizes, blocks, ctx.machine, max(most, 1) << 12)
            known = f"from {least} keys on" if least is not None else "at no length"
            ctx.refuse(op, f"all heads are exact: a polynomial is faster {known}, and there are at most {most}")
            return
        features = sum(block_sizes(sizes.features))
        largest = largest_bound(self.eps, most, features, sizes.features, dtype)
        shared = [max(bounds[i : i + op.group]) for i in range(0, len(bounds), op.group)]
        chosen = [bound <= largest for bound in shared]
        for head, (bound, taken) in enumerate(zip(shared, chosen, strict=True)):
            if not taken:
                ctx.refuse(
                    op,
                    f"{_named(head, op.group)} exact: logits up to {bound:.3g}, and an error of at most {self.eps:g} "
                    f"is proved up to {largest:.3g}",
                )
        if not any(chosen):
            return
        guard = min(largest, MARGIN * max(b for b, taken in zip(shared, chosen, strict=True) if taken))
        polynomial = Polynomial.of(max(guard, 1e-3))
        error = polynomial.error(most, features, sizes.features, dtype)
        if not ctx.apply([op], f"{sum(chosen)} of {len(chosen)} key heads by a polynomial"):
            return
        for head, (bound, taken) in enumerate(zip(shared, chosen, strict=True)):
            if taken:
                ctx.note(
                    "attention",
                    f"{_named(head, op.group)} approximate from {begins} keys on: logits up to {bound:.3g} in "
                    f"calibration, exact in calls with more than {polynomial.bound:.3g}, proved error {error:.3g}, "
                    f"eps {self.eps:g}, {len(blocks)} kernel{'s' if len(blocks) > 1 else ''} "
                    f"({'regime A' if len(blocks) == 1 else 'regime B'})",
                )
        _Rewrite(op, polynomial, blocks, begins, ctx.machine.rules.key_segment).run(chosen)


def unfit(op: AttentionOp, ctx: Context) -> str | None:
    """Why no head of an attention can be approximated; None where some may be."""
    q, k = tensor(op.q), tensor(op.k)
    operands = [n for n in ("bias", "valid", "sinks", "segments") if getattr(op, n) is not None]
    if operands:
        return f"a polynomial takes no {operands[0]}"
    if op.softcap.data:
        return "a polynomial takes no cap of logits"
    if op.lse.data:
        return "its log-sum-exp is asked for"
    if op.mask.data not in ("none", "causal"):
        return f"a {op.mask.data} mask leaves few keys"
    if op.mask.data == "causal" and (placed(op) is None or q.dims[-2] != k.dims[-2]):
        return "queries do not stand where the keys do"
    if q.dtype is F64 or tensor(op.v).dims[-1].constant is None or q.dims[-1].constant is None:
        return f"a polynomial takes f32 and narrower of fixed head dims, got {q}"
    if not q.dims[-3].constant:
        return "there are none"
    if ctx.at_most(k.dims[-2]) is None:
        return "the number of keys has no declared bound, and rounding grows with it"
    return None


def _named(head: int, group: int) -> str:
    return f"head {head} is" if group == 1 else f"heads {head * group} to {(head + 1) * group - 1} are"


@dataclass
class _Rewrite:
    """One attention's heads shared out over chains and exact attentions."""

    op: AttentionOp
    polynomial: Polynomial
    blocks: Sequence[tuple[int, int]]
    begins: int
    chunk: int

    def run(self, chosen: Sequence[bool]) -> None:
        """chosen: of each key head, whether it is approximated."""
        op, results, start = self.op, [], 0
        for taken, members in groupby(chosen):
            count = len(list(members))
            q = self._heads(op.q, start * op.group, (start + count) * op.group, len(chosen) * op.group)
            k, v = (self._heads(x, start, start + count, len(chosen)) for x in (op.k, op.v))
            if taken:
                results.append(self._chain(q, k, v))
            else:
                stated: dict[str, Any] = {n: p for n, p in op.properties.items() if n != "operandSegmentSizes"}
                rest = (None, None, op.q_positions, op.k_positions)
                results.append(self._add(AttentionOp, q, k, v, *rest, **stated))
            start += count
        axis = tensor(op.q).rank - 3
        whole = results[0] if len(results) == 1 else self._add(ConcatOp, results, axis=axis)
        op.out.replace_all_uses_with(whole)
        erase(op)

    def _add(self, kind: type[TwOperation], /, *operands: Any, **stated: Any) -> SSAValue:
        made = kind.make(*operands, like=self.op, **stated)
        block = self.op.parent
        assert block is not None
        block.insert_op_before(made, self.op)
        return made.results[0]

    def _heads(self, x: SSAValue, first: int, last: int, count: int) -> SSAValue:
        """Some heads of q, k or v."""
        if (first, last) == (0, count):
            return x
        dims = tensor(x).dims
        at = len(dims) - 3
        starts: list[ExprLike] = [first if i == at else 0 for i in range(len(dims))]
        stops: list[ExprLike] = [last if i == at else n for i, n in enumerate(dims)]
        return self._add(
            SliceOp, x, starts=[Expr.of(n) for n in starts], stops=[Expr.of(n) for n in stops], steps=[1] * len(dims)
        )

    def _constant(self, value: float | int, dtype: DType) -> SSAValue:
        made = ConstantOp.of(value, [], dtype)
        block = self.op.parent
        assert block is not None
        block.insert_op_before(made, self.op)
        return made.out

    def _norm(self, x: SSAValue, group: int) -> SSAValue:
        """The largest sum of squares of a row, of each key head: [..., Hkv] in f32."""
        wide = x if tensor(x).dtype is F32 else self._add(CastOp, x, dtype="f32")
        rank = tensor(x).rank
        squares = self._add(ReduceOp, self._add(MapOp, [wide, wide], fn="mul"), fn="sum", axes=[rank - 1])
        largest = self._add(ReduceOp, squares, fn="max", axes=[rank - 2])
        if group == 1:
            return largest
        *lead, heads = tensor(largest).dims
        apart = self._add(ReshapeOp, largest, dims=[*lead, Expr.of((heads.constant or 0) // group), Expr.of(group)])
        return self._add(ReduceOp, apart, fn="max", axes=[len(lead) + 1])

    def _exact(self, q: SSAValue, k: SSAValue) -> SSAValue:
        """1 for each key head that this call must do exactly: its norms are too large, or its keys too few."""
        norms = self._add(MapOp, [self._norm(q, self.op.group), self._norm(k, 1)], fn="mul")
        allowed = (self.polynomial.bound * (1 - _SLACK) / abs(self.op.scale.data)) ** 2 if self.op.scale.data else 1e30
        # NaN is not small
        small = self._add(MapOp, [norms, self._constant(allowed, F32)], fn="le")
        keys = self._add(DimOp, value=[tensor(k).dims[-2]])
        many = self._add(MapOp, [keys, self._constant(self.begins, I64)], fn="ge")
        both = self._add(MapOp, [small, many], fn="and")
        return self._add(MapOp, [both, self._constant(0, I64), self._constant(1, I64)], fn="select")

    def _chain(self, q: SSAValue, k: SSAValue, v: SSAValue) -> SSAValue:
        exact, p = self._exact(q, k), self.polynomial
        sums: SSAValue | None = None
        for first, last in self.blocks:
            sums = self._add(
                PolynomialAttentionOp, q, k, v, exact, sums, scale=self.op.scale.data, mask=self.op.mask.data,
                c0=p.c0, c1=p.c1, c2=p.c2, first=first, last=last, chunk=self.chunk,
            )  # fmt: skip
        assert sums is not None
        return sums
