"""The guards that a program from a .pt2 file carries: as text only, in Python, over the sizes of its arguments.

The text comes from a file, so it is read by this small evaluator and never run. It knows what torch prints there:
integers, arithmetic, comparisons, `and`, `or`, `not`, and `L['x'].size()[0]`.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from tilewright.errors import CaptureError
from tilewright.frontend.examples import Example, Leaf
from tilewright.frontend.guarding import Fact
from tilewright.frontend.symbols import Symbols
from tilewright.ir.dims import Expr
from tilewright.ir.guards import Guard, Relation

# As many combinations of sizes as are tried where a guard is an alternative.
_TRIED: Final = 4_096

_ARITHMETIC: Final[dict[type, Callable[[Any, Any], Any]]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
    ast.Div: operator.truediv,
}
_COMPARISONS: Final[dict[type, Callable[[Any, Any], bool]]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.LtE: operator.le,
    ast.Lt: operator.lt,
    ast.GtE: operator.ge,
    ast.Gt: operator.gt,
}
# A relation and whether its sides change places.
_RELATIONS: Final[dict[type, tuple[Relation, bool]]] = {
    ast.Eq: ("==", False),
    ast.NotEq: ("!=", False),
    ast.LtE: ("<=", False),
    ast.Lt: ("<", False),
    ast.GtE: ("<=", True),
    ast.Gt: ("<", True),
}


def carried_facts(program: Any, example: Example, symbols: Symbols) -> Iterator[Fact]:
    """The facts in a loaded program's text. CaptureError for text that is not of the known form."""
    if getattr(symbols.shape_env, "guards", None):
        # an exported program in memory still has them as expressions
        return
    shapes = _shapes(example)
    for text in getattr(program, "_guards_code", None) or ():
        try:
            for part in _conjuncts(ast.parse(text, mode="eval").body):
                yield _fact(part, shapes, symbols)
        except (SyntaxError, KeyError, IndexError, TypeError, AttributeError) as fault:
            step = "export the model again, or compile the module itself"
            raise CaptureError(f"the program's guard {text!r} is in no known form", step=step) from fault


def _shapes(example: Example) -> dict[str, Any]:
    """Every argument by name, with each tensor as its sizes."""
    found: dict[str, Any] = {}
    for entry in example.entries:
        leaves = [_sizes(leaf) if leaf.is_tensor else leaf.value for leaf in entry.leaves]
        found[entry.name] = entry.tree.rebuild(iter(leaves))
    return found


def _sizes(leaf: Leaf) -> tuple[Expr, ...]:
    axes = leaf.axes or (None,) * leaf.value.dim()
    return tuple(Expr.of(int(n) if dim is None else dim) for dim, n in zip(axes, leaf.value.shape, strict=True))


def _conjuncts(node: ast.expr) -> Iterator[ast.expr]:
    if isinstance(node, ast.BoolOp) and isinstance(node.op, ast.And):
        for part in node.values:
            yield from _conjuncts(part)
    else:
        yield node


def _fact(node: ast.expr, shapes: Mapping[str, Any], symbols: Symbols) -> Fact:
    if isinstance(node, ast.Compare) and len(node.ops) == 1 and not any(isinstance(n, ast.Div) for n in ast.walk(node)):
        relation, turned = _RELATIONS[type(node.ops[0])]
        sides = [Expr.of(_value(side, shapes)) for side in (node.left, node.comparators[0])]
        left, right = reversed(sides) if turned else sides
        return Fact.of(Guard(left, relation, right, None), symbols.space)
    used = sorted(_used(node, shapes))

    def holds(sizes: Mapping[str, int]) -> bool:
        try:
            return bool(_value(node, shapes, sizes))
        except ZeroDivisionError:
            return False

    dims = tuple(symbols.space.dims[name] for name in used)
    return Fact(ast.unparse(node), dims, holds, _TRIED, None, None)


def _used(node: ast.expr, shapes: Mapping[str, Any]) -> set[str]:
    """The dims that an expression reads."""
    found: set[str] = set()
    for part in ast.walk(node):
        if isinstance(part, ast.Subscript) and isinstance(part.value, ast.Call):
            found |= _value(part, shapes).symbols
    return found


def _value(node: ast.expr, shapes: Mapping[str, Any], sizes: Mapping[str, int] | None = None) -> Any:
    """What an expression stands for: with sizes a number or truth value, without them an `Expr`."""

    def value(part: ast.expr) -> Any:
        return _value(part, shapes, sizes)

    match node:
        case ast.Constant(value=int() | float() | str() as constant):
            return constant
        case ast.Name(id="L"):
            return shapes
        case ast.Subscript(value=inner, slice=index):
            item = value(inner)[value(index)]
            return item.evaluate(sizes) if isinstance(item, Expr) and sizes is not None else item
        case ast.Call(func=ast.Attribute(value=inner, attr="size"), args=[], keywords=[]):
            return value(inner)
        case ast.Call(func=ast.Name(id="min" | "max" as name), args=args) if sizes is not None:
            return (min if name == "min" else max)(value(arg) for arg in args)
        case ast.BinOp(left=left, op=op, right=right):
            return _ARITHMETIC[type(op)](value(left), value(right))
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -value(operand)
        case ast.UnaryOp(op=ast.Not(), operand=operand) if sizes is not None:
            return not value(operand)
        case ast.BoolOp(op=op, values=values) if sizes is not None:
            return all(map(value, values)) if isinstance(op, ast.And) else any(map(value, values))
        case ast.Compare(left=left, ops=ops, comparators=others) if sizes is not None:
            terms = [value(term) for term in (left, *others)]
            return all(_COMPARISONS[type(op)](a, b) for op, a, b in zip(ops, terms, terms[1:], strict=False))
    raise TypeError(ast.unparse(node))
