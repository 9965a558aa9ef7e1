"""What an op or kernel costs, as formulas in named dims: work by unit and words moved by level."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from tilewright.ir.dims import Expr, ExprLike


@dataclass(frozen=True, slots=True)
class Work:
    """What a kernel asks of a machine at given sizes, all cores together.

    flops: by unit and dtype of the factors, {("matrix", "f32"): 2e9}. moved: bytes that a level gives to and takes from
    what it feeds, by the level's name.
    """

    flops: Mapping[tuple[str, str], float] = field(default_factory=dict)
    moved: Mapping[str, float] = field(default_factory=dict)

    def __add__(self, other: Work) -> Work:
        flops = {key: self.flops.get(key, 0) + other.flops.get(key, 0) for key in {**self.flops, **other.flops}}
        moved = {key: self.moved.get(key, 0) + other.moved.get(key, 0) for key in {**self.moved, **other.moved}}
        return Work(flops, moved)


@dataclass(frozen=True, slots=True)
class Cost:
    """FLOPs per unit, and bytes read and written once each (the compulsory traffic of the op standing alone).

    A multiply-add counts as two FLOPs; an elementwise function counts the FLOPs its entry in the scalar table states.
    """

    matrix: Expr = field(default_factory=lambda: Expr.of(0))
    vector: Expr = field(default_factory=lambda: Expr.of(0))
    read: Expr = field(default_factory=lambda: Expr.of(0))
    write: Expr = field(default_factory=lambda: Expr.of(0))

    @staticmethod
    def of(*, matrix: ExprLike = 0, vector: ExprLike = 0, read: ExprLike = 0, write: ExprLike = 0) -> Cost:
        return Cost(Expr.of(matrix), Expr.of(vector), Expr.of(read), Expr.of(write))

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.matrix + other.matrix, self.vector + other.vector, self.read + other.read, self.write + other.write
        )

    @property
    def flops(self) -> Expr:
        return self.matrix + self.vector

    def at(self, dims: Mapping[str, int]) -> dict[str, int]:
        """The figures at given dim sizes."""
        return {name: getattr(self, name).evaluate(dims) for name in ("matrix", "vector", "read", "write")}


def total(costs: Iterable[Cost]) -> Cost:
    """The sum of several costs."""
    result = Cost()
    for cost in costs:
        result = result + cost
    return result
