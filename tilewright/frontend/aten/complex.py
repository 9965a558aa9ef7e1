"""Complex tensors as pairs of real ones: the IR has no complex numbers, and rotary embeddings are written in them.

A pair lives only between operators; what a graph takes and gives stays real. Operators that move elements work on both
parts alike, with the lowering that they have for real tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from xdsl.ir import SSAValue

from tilewright.frontend.aten.combining import concat
from tilewright.frontend.aten.elementwise import magnitude
from tilewright.frontend.builder import Builder
from tilewright.frontend.registry import Unsupported, lowerings
from tilewright.ir.graph.base import tensor


@dataclass(frozen=True, slots=True)
class Pair:
    """A complex tensor: its real and its imaginary part, values of one shape and dtype."""

    real: Any
    imaginary: Any


# What moves, copies or adds up elements, and treats the parts of complex ones alike.
_ALIKE: Final = frozenset(
    f"aten.{name}"
    for name in (
        "neg.default", "cat.default", "stack.default", "where.self", "sum.default",
        "sum.dim_IntList", "mean.default", "mean.dim", "index.Tensor", "index_select.default", "gather.default",
        "alias.default", "detach.default", "clone.default", "contiguous.default", "lift_fresh.default",
        "lift_fresh_copy.default", "view.default", "reshape.default", "_unsafe_view.default", "unsqueeze.default",
        "flatten.using_ints", "unflatten.int", "squeeze.default", "squeeze.dim", "squeeze.dims", "expand.default",
        "expand_as.default", "permute.default", "transpose.int", "t.default", "mT.default", "movedim.int",
        "movedim.intlist", "slice.Tensor", "narrow.default", "select.int", "split.Tensor", "split_with_sizes.default",
        "chunk.default", "unbind.int", "repeat.default", "repeat_interleave.self_int", "flip.default", "roll.default",
    )
)  # fmt: skip
_PARTS: Final[dict[str, Callable[..., Any]]] = {}


def in_parts(name: str) -> Callable[..., Any] | None:
    """How an operator that takes or gives complex tensors is built; None where there is no way."""
    found = _PARTS.get(name)
    if found is not None or name not in _ALIKE:
        return found

    def alike(c: Builder, *args: Any, **kwargs: Any) -> Any:
        lower = lowerings()[name]
        real = lower(c, *map(_real, args), **{key: _real(value) for key, value in kwargs.items()})
        imaginary = lower(c, *(_imaginary(c, a) for a in args), **{k: _imaginary(c, v) for k, v in kwargs.items()})
        return _paired(real, imaginary)

    return alike


def takes_parts(name: str) -> bool:
    """Whether an operator has a form for complex tensors."""
    return name in _PARTS or name in _ALIKE


def has_pair(value: Any) -> bool:
    """Whether an argument is a complex tensor, or holds one."""
    return any(map(has_pair, value)) if isinstance(value, (list, tuple)) else isinstance(value, Pair)


def _paired(real: Any, imaginary: Any) -> Any:
    if isinstance(real, tuple):
        return tuple(map(_paired, real, imaginary))
    return Pair(real, imaginary)


def _real(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_real(v) for v in value]
    return value.real if isinstance(value, Pair) else value


def _imaginary(c: Builder, value: Any) -> Any:
    """The imaginary part; real tensors of numbers have none, while masks and places are what they are."""
    if isinstance(value, (list, tuple)):
        return [_imaginary(c, v) for v in value]
    if isinstance(value, Pair):
        return value.imaginary
    if isinstance(value, SSAValue) and tensor(value).dtype.is_float:
        return c.full(0.0, tensor(value).dims, tensor(value).dtype)
    return value


def _parts(*operators: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        for name in operators:
            _PARTS[f"aten.{name}"] = function
        return function

    return register


@_parts("view_as_complex.default")
def view_as_complex(c: Builder, self: SSAValue) -> Pair:
    """x [..., 2]."""
    axis = tensor(self).rank - 1
    dims = tensor(self).dims[:-1]
    real, imaginary = (c.reshape(c.slice(self, axis, i, i + 1), dims) for i in (0, 1))
    return Pair(real, imaginary)


@_parts("view_as_real.default")
def view_as_real(c: Builder, self: Pair) -> SSAValue:
    apart = [c.reshape(part, [*tensor(part).dims, 1]) for part in (self.real, self.imaginary)]
    return concat(c, apart, tensor(apart[0]).rank - 1)


@_parts("polar.default")
def polar(c: Builder, abs: SSAValue, angle: SSAValue) -> Pair:
    return Pair(*(c.map("mul", abs, c.map(fn, angle)) for fn in ("cos", "sin")))


@_parts("complex.default")
def complex_(c: Builder, real: SSAValue, imag: SSAValue) -> Pair:
    dims = c.result.dims
    return Pair(c.broadcast(real, dims), c.broadcast(imag, dims))


@_parts("real.default")
def real(c: Builder, self: Pair) -> Any:
    return self.real


@_parts("imag.default")
def imag(c: Builder, self: Pair) -> Any:
    return self.imaginary


@_parts("conj.default", "_conj.default", "conj_physical.default", "resolve_conj.default")
def conjugate(c: Builder, self: Pair) -> Pair:
    if "resolve" in str(c.node.target):
        # a conjugate is written out where it is taken
        return self
    return Pair(self.real, c.map("neg", self.imaginary))


@_parts("add.Tensor", "sub.Tensor")
def add(c: Builder, self: Any, other: Any, alpha: Any = 1) -> Pair:
    fn = "sub" if ".sub." in str(c.node.target) else "add"
    sides = [value if isinstance(value, Pair) else Pair(_plain(value), 0.0) for value in (self, other)]
    one, two = sides if alpha == 1 else [sides[0], multiply(c, sides[1], alpha)]
    dims = c.result.dims
    parts = (c.map(fn, one.real, two.real), c.map(fn, one.imaginary, two.imaginary))
    return Pair(*(c.broadcast(part, dims) for part in parts))


@_parts("mul.Tensor", "mul.Scalar")
def multiply(c: Builder, self: Any, other: Any) -> Pair:
    if not isinstance(self, Pair):
        self, other = other, self
    if not isinstance(other, Pair):
        other = _plain(other)
        return Pair(c.map("mul", self.real, other), c.map("mul", self.imaginary, other))
    a, b, u, v = self.real, self.imaginary, other.real, other.imaginary
    return Pair(
        c.map("sub", c.map("mul", a, u), c.map("mul", b, v)), c.map("add", c.map("mul", a, v), c.map("mul", b, u))
    )


@_parts("div.Tensor", "div.Scalar")
def divide(c: Builder, self: Any, other: Any) -> Pair:
    if isinstance(other, Pair):
        raise Unsupported("a quotient of complex numbers")
    other = _plain(other)
    return Pair(c.map("div", self.real, other), c.map("div", self.imaginary, other))


@_parts("exp.default")
def exponential(c: Builder, self: Pair) -> Any:
    return polar(c, c.map("exp", self.real), self.imaginary)


@_parts("abs.default")
def absolute(c: Builder, self: Pair) -> SSAValue:
    return magnitude(c, self.real, self.imaginary)


@_parts("to.dtype", "to.device", "to.dtype_layout", "to.other", "_to_copy.default", "type_as.default")
def cast(c: Builder, self: Any, *_: Any, **__: Any) -> Any:
    """Between complex dtypes, from real numbers, and to them, which leaves the imaginary part out as torch does."""
    dtype = c.result.dtype
    if not c.is_complex:
        return c.cast(self.real, dtype)
    if isinstance(self, Pair):
        return Pair(c.cast(self.real, dtype), c.cast(self.imaginary, dtype))
    return Pair(c.cast(self, dtype), c.full(0.0, tensor(self).dims, dtype))


def _plain(value: Any) -> Any:
    if isinstance(value, complex):
        if value.imag:
            raise Unsupported("a complex number as a constant")
        return value.real
    return value
