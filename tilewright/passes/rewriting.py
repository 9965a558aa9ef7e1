"""Rewriting tools shared by the passes: building beside an op, replacing it, erasing the dead, reading what is bound.

A rule looks at one op and either says nothing or builds, before that op, the value that may stand in its place. The
driver asks `ctx.apply`, then replaces and erases; a refused rule leaves no trace. Constants are always bound: a matcher
hands out the number it found and the rule compares it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeGuard, TypeVar

from xdsl.dialects.builtin import ModuleOp
from xdsl.ir import Block, Operation, SSAValue
from xdsl.traits import Pure

from tilewright.errors import IRError
from tilewright.ir.dims import Expr, ExprLike
from tilewright.ir.dtypes import DType
from tilewright.ir.graph.base import GraphOp, tensor
from tilewright.ir.graph.elementwise import CastOp, MapOp
from tilewright.ir.graph.shape import ReshapeOp, SliceOp
from tilewright.ir.graph.structure import CallOp, ConstantOp, GroupOp
from tilewright.ir.module import functions
from tilewright.ir.operation import TwOperation
from tilewright.ir.passing import Context, Pass

Op = TypeVar("Op", bound=TwOperation)

REWRITES_PER_OP = 100  # far above what any rule needs; only rules that undo each other get there


# --- building and replacing -----------------------------------------------------------------------------------------


@dataclass
class Site:
    """The place before one op where a rule builds what may replace it; new ops take over that op's source location."""

    at: Operation
    ctx: Context
    made: list[Operation] = field(default_factory=list)
    said: set[tuple[int, str]] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)

    def make(self, op_class: type[Op], /, *operands: Any, **stated: Any) -> SSAValue:
        """Inserts an op before the site and gives its first result."""
        op = op_class.make(*operands, like=self.at, **stated)
        self._insert(op)
        return op.results[0]

    def map(self, fn: str, *operands: SSAValue) -> SSAValue:
        """A graph.map of these operands."""
        return self.make(MapOp, list(operands), fn=fn)

    def cast(self, value: SSAValue, dtype: DType) -> SSAValue:
        """A value in a dtype; itself where it has it."""
        return value if tensor(value).dtype == dtype else self.make(CastOp, value, dtype=dtype.name)

    def slice(self, value: SSAValue, axis: int, start: ExprLike, stop: ExprLike) -> SSAValue:
        """Elements start .. stop - 1 along an axis; the value itself where that is all of them."""
        dims = tensor(value).dims
        if Expr.of(start) == Expr.of(0) and Expr.of(stop) == dims[axis]:
            return value
        starts, stops = [Expr.of(0)] * len(dims), list(dims)
        starts[axis], stops[axis] = Expr.of(start), Expr.of(stop)
        return self.make(SliceOp, value, starts=starts, stops=stops)

    def constant(self, value: float, dtype: DType, dims: Sequence[ExprLike] = ()) -> SSAValue:
        """A splat, of rank 0 unless dims are given."""
        op = ConstantOp.of(value, dims, dtype)
        if isinstance(self.at, TwOperation):
            op.take_location(self.at)
        self._insert(op)
        return op.results[0]

    def refuse(self, reason: str) -> None:
        """Records, once for this op, why it is nearly but not quite what a rule looks for."""
        if (id(self.at), reason) not in self.said:
            self.said.add((id(self.at), reason))
            self.ctx.refuse(self.at, reason)

    def note(self, text: str) -> None:
        """What the report says once, with a count, if the rule applies: a result that differs from the model's."""
        self.notes.append(text)

    def _insert(self, op: Operation) -> None:
        block = self.at.parent
        if block is None:
            raise IRError(f"{self.at.name} stands in no block", step="rewrite ops of a function's body")
        block.insert_op_before(op, self.at)
        self.made.append(op)

    def undo(self) -> None:
        """Erases what was built here."""
        for op in reversed(self.made):
            erase(op)
        self.made.clear()


@dataclass(frozen=True)
class Rule:
    """One rewrite: its name in the report, the ops it looks at, and the function that builds the replacement."""

    name: str
    ops: tuple[type[Operation], ...]
    rewrite: Callable[[Any, Site], SSAValue | None]


class Rules:
    """A list of rules that functions join with `@rules.on(OpClass, ...)`, named after the function or as stated."""

    def __init__(self, *parts: Rules) -> None:
        self.listed: list[Rule] = [r for part in parts for r in part.listed]

    def on(
        self, *ops: type[Operation], name: str | None = None
    ) -> Callable[[Callable[[Any, Site], SSAValue | None]], Rule]:
        """Adds the decorated function as a rule for these op classes."""

        def add(function: Callable[[Any, Site], SSAValue | None]) -> Rule:
            rule = Rule(name or function.__name__.replace("_", "-"), ops, function)
            self.listed.append(rule)
            return rule

        return add

    def for_op(self, op: Operation) -> Iterator[Rule]:
        """The rules that look at this op, in the order they were added."""
        return (r for r in self.listed if isinstance(op, r.ops))


def run_rules(block: Block, rules: Rules, ctx: Context) -> None:
    """Applies rules to the ops of a block until none applies; what becomes dead is erased."""
    queue = deque(block.ops)
    queued = set(map(id, queue))
    budget = REWRITES_PER_OP * (len(queue) + 1)
    said: set[tuple[int, str]] = set()

    def enqueue(ops: Iterable[Any]) -> None:
        for op in ops:
            if isinstance(op, Operation) and op.parent is block and id(op) not in queued:
                queued.add(id(op))
                queue.append(op)

    while queue:
        op = queue.popleft()
        queued.discard(id(op))
        if op.parent is not block:
            continue
        if is_dead(op):
            enqueue(erase_with_dead_producers(op))
            continue
        for rule in rules.for_op(op):
            site = Site(op, ctx, said=said)
            value = rule.rewrite(op, site)
            if value is None:
                site.undo()
                continue
            if value.type != op.results[0].type:
                raise IRError(
                    f"rule {rule.name} turns {op.name} of {op.results[0].type} into {value.type}",
                    step="report this: a rule must keep the type",
                )
            if not ctx.apply([op], rule.name):
                site.undo()
                continue
            for text in site.notes:
                ctx.note(rule.name, text)
            budget -= 1
            if not budget:
                raise IRError(f"rule {rule.name} does not come to rest", step="report this: two rules undo each other")
            users = [use.operation for use in op.results[0].uses]
            # the dead go at once: rules ask how often a value is used
            alive = erase_with_dead_producers(*replace(op, [value]))
            enqueue([*alive, *(made for made in site.made if made.parent is block), *users])
            break


@dataclass(frozen=True)
class RulesPass(Pass):
    """A pass that is tables of rules, run one after the other over each function; then what is dead is erased.

    looks_for: ops of which a function must have one, else it is left as it is; none: every function is rewritten.
    """

    tables: ClassVar[tuple[Rules, ...]] = ()
    looks_for: ClassVar[tuple[type[Operation], ...]] = ()

    def run(self, module: ModuleOp, ctx: Context) -> None:
        for function in functions(module).values():
            if self.looks_for and not any(isinstance(op, self.looks_for) for op in function.block.ops):
                continue
            for rules in self.tables:
                run_rules(function.block, rules, ctx)
            erase_dead(function.block)


def erase_with_dead_producers(*ops: Operation) -> list[Operation]:
    """Erases those ops that are dead and what is dead without them; gives the producers that stay."""
    stay: list[Operation] = []
    pending = list(ops)
    while pending:
        op = pending.pop()
        if op.parent is None:
            continue
        if not is_dead(op):
            stay.append(op)
            continue
        pending.extend(v.owner for v in op.operands if isinstance(v.owner, Operation))
        erase(op)
    return [op for op in stay if op.parent is not None]


def replace(op: Operation, values: Sequence[SSAValue]) -> list[Operation]:
    """Has every user of an op's results use these values instead, and erases the op; gives its operands' producers."""
    producers = [v.owner for v in op.operands if isinstance(v.owner, Operation)]
    for old, new in zip(op.results, values, strict=True):
        if new.name_hint is None:
            new.name_hint = old.name_hint
        old.replace_all_uses_with(new)
    erase(op)
    return producers


def erase(op: Operation) -> None:
    """Takes an op whose results nobody uses out of its block, for good."""
    block = op.parent
    if block is not None:
        block.detach_op(op)
    op.erase()


def is_pure(op: object) -> TypeGuard[GraphOp]:
    """True for ops that compute their results and do nothing else; False for what is no op."""
    return isinstance(op, GraphOp) and op.has_trait(Pure)


def is_dead(op: Operation) -> bool:
    """True for pure ops whose results nobody uses."""
    return is_pure(op) and not any(result.first_use for result in op.results)


def erase_dead(block: Block) -> int:
    """Erases pure ops whose results nobody uses, users before producers; gives their number."""
    erased = 0
    for op in reversed(list(block.ops)):
        if is_dead(op):
            erase(op)
            erased += 1
        elif isinstance(op, GroupOp):
            erased += erase_dead(op.block)
    return erased


# --- reading --------------------------------------------------------------------------------------------------------


def defined(value: SSAValue, kind: type[Op]) -> Op | None:
    """The op that produces a value, if it is of this class."""
    owner = value.owner
    return owner if isinstance(owner, kind) else None


def splat(value: SSAValue) -> int | float | None:
    """The number that every element of a constant has; None for anything else."""
    constant = defined(value, ConstantOp)
    return None if constant is None else constant.splat


def mapped(value: SSAValue, *names: str) -> MapOp | None:
    """The graph.map of one of these functions that produces a value."""
    op = defined(value, MapOp)
    return op if op is not None and op.fn.data in names else None


def with_splat(op: MapOp) -> tuple[SSAValue, float] | None:
    """(x, c) of a two-operand map with one splat operand, on either side; None when there is none or both are."""
    left, right = (splat(a) for a in op.args)
    if (left is None) == (right is None):
        return None
    return (op.args[0], float(right)) if right is not None else (op.args[1], float(left or 0))


def near(found: float, wanted: float, dtype: DType) -> bool:
    """True when a constant is `wanted` as the dtype, or a computation in it, would round it."""
    digits = {"f64": 52, "f32": 23, "f16": 10, "bf16": 7}.get(dtype.name)
    return found == wanted if digits is None else abs(found - wanted) <= 2.0**-digits * abs(wanted)


def users(value: SSAValue) -> list[Operation]:
    """The distinct ops that use a value, in the order of their uses."""
    return list({id(use.operation): use.operation for use in value.uses}.values())


def sole_user(value: SSAValue) -> Operation | None:
    """The one op that uses a value; None when there are none or several."""
    found = users(value)
    return found[0] if len(found) == 1 else None


def only_adds_units(op: object) -> bool:
    """A reshape that adds or drops axes of size 1 and does nothing else."""
    return isinstance(op, ReshapeOp) and wide_dims(tensor(op.x).dims) == wide_dims(op.dims.data)


def wide_dims(dims: Sequence[Expr]) -> list[Expr]:
    """The dims that are not 1."""
    return [d for d in dims if d.constant != 1]


def same_dims(a: SSAValue, b: SSAValue) -> bool:
    """True when two values have equal dims."""
    return tensor(a).dims == tensor(b).dims


def order_block(block: Block) -> None:
    """Sorts a block's ops so that values stand before their uses; ops with effects keep their order.

    Calls count as pure: what layer functions hold is.
    """
    position = {op: i for i, op in enumerate(block.ops)}
    effects = [op for op in block.ops if not is_pure(op) and not isinstance(op, CallOp)]
    earlier = dict(zip(effects[1:], effects, strict=False))
    ordered: dict[Operation, None] = {}
    for op in list(block.ops):
        pending = [op]
        waiting: set[Operation] = set()
        while pending:
            current = pending[-1]
            needed = [v.owner for v in current.operands if v.owner in position and v.owner not in ordered]
            if current in earlier and earlier[current] not in ordered:
                needed.append(earlier[current])
            if needed:
                if current in waiting:
                    raise IRError(
                        f"{current.name} and what it reads need each other", step="report this: a pass made a circle"
                    )
                waiting.add(current)
                pending.extend(o for o in needed if isinstance(o, Operation))
                continue
            pending.pop()
            ordered.setdefault(current)
    for op in list(block.ops):
        block.detach_op(op)
    block.add_ops(list(ordered))
