"""What a graph.attention is told about visibility, from the conditions and biases found on the logits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from xdsl.ir import SSAValue

from tilewright.ir.dims import Expr
from tilewright.ir.graph.base import tensor
from tilewright.ir.graph.shape import ReshapeOp
from tilewright.passes.recognize import masks
from tilewright.passes.recognize.masks import Bound
from tilewright.passes.rewriting import Site, mapped, splat


@dataclass(frozen=True)
class Visibility:
    """The mask kind with its positions, and what stays an operand: conditions that must hold, and numbers added.

    finite: a finite number among those added was taken for what hides keys.
    """

    kind: str = "none"
    window: int = 0
    q_positions: SSAValue | None = None
    k_positions: SSAValue | None = None
    conditions: tuple[SSAValue, ...] = ()
    biases: tuple[SSAValue, ...] = ()
    finite: bool = False

    def with_heads(self, add: Callable[[SSAValue], SSAValue]) -> Visibility:
        """The same for logits with one more axis, for heads, before the last two."""

        def each(values: Sequence[SSAValue]) -> tuple[SSAValue, ...]:
            return tuple(add(v) if tensor(v).rank > 2 else v for v in values)

        return replace(self, conditions=each(self.conditions), biases=each(self.biases))

    def bias(self, site: Site) -> SSAValue | None:
        """The sum of the biases."""
        total: SSAValue | None = None
        for bias in self.biases:
            total = bias if total is None else site.map("add", total, bias)
        return total

    def valid(self, site: Site, rank: int) -> SSAValue | None:
        """The conditions as one: [..., Tk] where it is the same for all heads and queries, else of the logits' rank."""
        found = masks.all_of(self.conditions, site)
        if found is None:
            return None
        dims = tensor(found).dims
        dims = (*[Expr.of(1)] * (rank - len(dims)), *dims)
        if is_per_key(dims):
            dims = (*dims[:-3], dims[-1])
        return found if dims == tensor(found).dims else site.make(ReshapeOp, found, dims=dims)


# --- conditions -----------------------------------------------------------------------------------------------------


def is_per_key(dims: Sequence[Expr]) -> bool:
    """Heads and queries do not matter."""
    return dims[-2].constant == 1 and dims[-3].constant == 1


def is_causal(bound: Bound, tq: Expr, tk: Expr) -> bool:
    """Keys up to the query's own position: by positions, or by index with the ends aligned."""
    if not bound.upper:
        return False
    return bound.offset == Expr.of(0) if bound.q_positions is not None else bound.offset == tk - tq


def window_of(bound: Bound, tq: Expr, tk: Expr) -> int | None:
    """W where the condition is position of query - position of key < W."""
    if bound.upper:
        return None
    own = Expr.of(0) if bound.q_positions is not None else tk - tq
    window = (own - bound.offset + 1).constant
    return window if window is not None and window > 0 else None


def share_positions(a: Bound, b: Bound) -> bool:
    """Both bounds count in the same positions: of the queries, and so of the keys, too, which count as those do."""
    return a.q_positions is b.q_positions


# --- the whole ------------------------------------------------------------------------------------------------------


def visibility(
    conditions: Sequence[SSAValue],
    hidden: Sequence[SSAValue],
    biases: Sequence[SSAValue],
    tq: Expr,
    tk: Expr,
    site: Site,
    *,
    finite: bool,
) -> Visibility:
    """Sorts conditions and biases into a mask kind and what stays an operand."""
    wanted = [*conditions, *(site.map("not", h) for h in hidden)]
    added: list[SSAValue] = []
    was_finite = False
    for bias in [part for b in biases for part in _addends(b, site, finite=finite)]:
        condition = masks.condition_of(bias, site, finite=finite)
        if condition is None:
            added.append(bias)
        else:
            wanted.append(condition)
            was_finite = was_finite or masks.condition_of(bias, site, finite=False) is None
    parts = [part for c in wanted for part in masks.conjuncts(c, site) if splat(part) != 1]
    causal: Bound | None = None
    windows: list[tuple[Bound, int, SSAValue]] = []
    others: list[SSAValue] = []
    for part in parts:
        # a count along each of the last two axes makes these the queries and the keys: sizes above 1 never stretch
        bound = masks.bound_of(part)
        if bound is None and masks.triangle(part):
            bound = Bound(True, Expr.of(0), None, None)
        window = None if bound is None else window_of(bound, tq, tk)
        if bound is not None and is_causal(bound, tq, tk) and (causal is None or share_positions(causal, bound)):
            causal = bound
        elif bound is not None and window is not None:
            windows.append((bound, window, part))
        else:
            if bound is not None:
                site.refuse(
                    f"attention: keys {'up to' if bound.upper else 'from'} query + {bound.offset} are seen; with the "
                    f"ends aligned, causal is query + {tk - tq}: kept as a condition"
                )
            others.append(part)
    kept = [w for w in windows if causal is not None and share_positions(causal, w[0])]
    others += [part for bound, window, part in windows if (bound, window, part) not in kept]
    if causal is None:
        return Visibility(conditions=tuple(others), biases=tuple(added), finite=was_finite)
    narrowest = min((w for _, w, _ in kept), default=0)
    return Visibility(
        kind="sliding" if kept else "causal",
        window=narrowest,
        q_positions=causal.q_positions,
        k_positions=causal.k_positions,
        conditions=tuple(others),
        biases=tuple(added),
        finite=was_finite,
    )


def _addends(bias: SSAValue, site: Site, *, finite: bool) -> list[SSAValue]:
    """The parts of a sum of biases, where one of them is a mask."""
    total = mapped(bias, "add")
    if total is None:
        return [bias]
    parts = [part for arg in total.args for part in _addends(arg, site, finite=finite)]
    return parts if any(masks.condition_of(p, site, finite=finite) is not None for p in parts) else [bias]
