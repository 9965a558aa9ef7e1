"""Random tile kernels: tiles of a few shapes, combined by random ops, in one tile or along a loop with carries."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
from xdsl.ir import SSAValue

from tilewright.ir.dtypes import F32
from tilewright.ir.tile.base import tile
from tilewright.ir.tile.builder import KernelBuilder
from tilewright.ir.tile.structure import KernelOp

Pool = list[SSAValue]


class RandomKernel:
    """Builds one kernel on x, y [n, m], z [m, depth], w [depth, m] with two [n, m] results and an [n, 1] one."""

    def __init__(self, seed: int) -> None:
        self.r = random.Random(seed)
        self.rows = self.r.choice([1, 2, 3, 4, 5, 8, 16, 20])
        self.columns = self.r.choice([1, 4, 16, 20, 32, 48, 100])
        self.depth = self.r.choice([3, 16, 24])
        self.b = KernelBuilder("random", ["n", "m"])
        b = self.b
        self.x, self.y = b.buffer(["n", "m"], F32), b.buffer(["n", "m"], F32)
        self.z, self.w = b.buffer(["m", self.depth], F32), b.buffer([self.depth, "m"], F32)
        self.out = [b.output(["n", "m"], F32), b.output(["n", "m"], F32), b.output(["n", 1], F32)]

    def build(self) -> KernelOp:
        """The kernel: over a grid of tiles, over rows in a loop without carries, or with two passes over each row."""
        form = self.r.choice(["tiles", "rows", "passes", "passes"])
        if form == "tiles":
            self.i, j = self.b.grid(["n", "m"], [self.rows, self.columns])
            self.store_two(self.grow(self.loads(j), self.r.randrange(2, 12), j), j)
            return self.b.finish()
        (self.i,) = self.b.grid(["n"], [self.rows])
        if form == "rows":
            with self.b.loop(0, "m", self.columns) as loop:
                self.store_two(self.grow(self.loads(loop.at), self.r.randrange(2, 9), loop.at), loop.at)
        else:
            self.passes()
        return self.b.finish()

    def passes(self) -> None:
        """A loop that carries tiles of random shapes, then a loop that uses what it left."""
        b, r = self.b, self.r
        choices = [(self.rows, 1), (self.rows, self.columns), (self.rows, 16), (self.rows, self.depth)]
        shapes = [r.choice(choices) for _ in range(r.randrange(1, 4))]
        first = self.column()
        outside = [first, b.map("tanh", first)]
        with b.loop(0, "m", self.columns, [b.constant(r.choice([0.0, 1.0]), s) for s in shapes]) as loop:
            pool = self.loads(loop.at) + list(loop.carried) + (outside if r.random() < 0.7 else [])
            self.grow(pool, r.randrange(3, 10), loop.at)
            loop.give(*(self.next(pool, carried, s) for carried, s in zip(loop.carried, shapes, strict=True)))
        left = loop.out
        with b.loop(0, "m", self.columns) as second:
            self.store_two(self.grow(self.loads(second.at) + left, r.randrange(5), second.at), second.at)
        b.store(b.reduce("sum", b.broadcast(left[0], shapes[0]), 1), b.dense(self.out[2]), [self.i, 0])

    def next(self, pool: Pool, carried: SSAValue, shape: tuple[int, int]) -> SSAValue:
        b, r = self.b, self.r
        whole = [v for v in pool if tile(v).extents == (self.rows, self.columns)]
        if shape == (self.rows, 16) and self.columns % 16 == 0 and whole and r.random() < 0.7:
            return b.accumulate(r.choice(["sum", "max"]), r.choice(whole), carried)
        chosen = self.pick(pool, shape)
        fading = b.map("add", b.map("mul", carried, b.constant(0.5, (1, 1))), chosen)
        return fading if r.random() < 0.6 else chosen

    # --- leaves ---------------------------------------------------------------------------------------------------

    def fill(self) -> float | None:
        return None if self.r.random() < 0.3 else self.r.choice([0.0, 0.0, 1.0, -np.inf])

    def loads(self, j: SSAValue) -> Pool:
        b, r, shape = self.b, self.r, (self.rows, self.columns)
        pool = [b.load(b.dense(self.x), [self.i, j], shape, self.fill())]
        if r.random() < 0.6:
            pool.append(b.load(b.dense(self.y), [self.i, j], shape, self.fill()))
        if r.random() < 0.4:
            row = b.load(b.view(self.z, ["m"], [self.depth]), [j], [self.columns], self.fill())
            pool.append(b.reshape(row, (1, self.columns)))
        if r.random() < 0.4:
            pool.append(self.column())
        return pool

    def column(self) -> SSAValue:
        return self.b.load(self.b.view(self.x, ["n", 1], ["m", 1]), [self.i, 0], [self.rows, 1], self.fill())

    # --- ops ------------------------------------------------------------------------------------------------------

    def grow(self, pool: Pool, count: int, j: SSAValue) -> Pool:
        ops: list[Callable[[Pool, SSAValue, SSAValue], SSAValue | None]] = [
            self.unary, self.binary, self.binary, self.binary, self.choose, self.masked, self.reduced, self.reduced,
            self.turned, self.rotated, self.product,
        ]  # fmt: skip
        for _ in range(count):
            made = self.r.choice(ops)(pool, self.r.choice(pool), j)
            if made is not None:
                pool.append(made)
        return pool

    def fitting(self, pool: Pool, value: SSAValue) -> SSAValue:
        """A value that stretches with another."""
        own = tile(value).extents
        fits = [v for v in pool if all(p == q or 1 in (p, q) for p, q in zip(tile(v).extents, own, strict=True))]
        return self.r.choice(fits)

    def unary(self, pool: Pool, value: SSAValue, j: SSAValue) -> SSAValue:
        return self.b.map(self.r.choice(["neg", "abs", "relu", "tanh", "sigmoid"]), value)

    def binary(self, pool: Pool, value: SSAValue, j: SSAValue) -> SSAValue:
        return self.b.map(self.r.choice(["add", "sub", "mul", "max", "min"]), value, self.fitting(pool, value))

    def choose(self, pool: Pool, value: SSAValue, j: SSAValue) -> SSAValue:
        other = self.fitting(pool, value)
        return self.b.map("select", self.b.map("lt", value, other), value, other)

    def masked(self, pool: Pool, value: SSAValue, j: SSAValue) -> SSAValue | None:
        b, axis = self.b, self.r.randrange(2)
        extents = tile(value).extents
        if extents[axis] != (self.rows, self.columns)[axis]:
            return None
        shape = tuple(n if a == axis else 1 for a, n in enumerate(extents))
        at, size = ((self.i, "n"), (j, "m"))[axis]
        inside = b.map("lt", b.coordinates(at, axis, shape), b.splat(size, (1, 1)))
        return b.map("select", inside, value, b.constant(self.r.choice([0.0, -np.inf, 1.0]), (1, 1)))

    def reduced(self, pool: Pool, value: SSAValue, j: SSAValue) -> SSAValue:
        return self.b.reduce(self.r.choice(["sum", "max", "min"]), value, self.r.randrange(2))

    def turned(self, pool: Pool, value: SSAValue, j: SSAValue) -> SSAValue:
        across = self.b.transpose(value, (1, 0))
        return self.b.transpose(self.b.map("neg", across) if self.r.random() < 0.5 else across, (1, 0))

    def rotated(self, pool: Pool, value: SSAValue, j: SSAValue) -> SSAValue | None:
        axis, extents = self.r.randrange(2), tile(value).extents
        if extents[axis] == 1:
            return None
        at = self.r.randrange(1, extents[axis])
        start, stop = ([at if a == axis else n for a, n in enumerate(whole)] for whole in ((0, 0), extents))
        return self.b.concat([self.b.slice(value, start, extents), self.b.slice(value, (0, 0), stop)], axis)

    def product(self, pool: Pool, value: SSAValue, j: SSAValue) -> SSAValue:
        b, (rows, depth) = self.b, tile(value).extents
        if depth == self.columns and self.r.random() < 0.5:
            right = b.load(b.dense(self.z), [j, 0], [self.columns, self.depth], self.fill())
            inner = b.dot(value, right, b.constant(0.5, (rows, self.depth)))
            back = b.load(b.dense(self.w), [0, j], [self.depth, self.columns], self.fill())
            made = b.dot(inner, back, b.constant(0.0, (rows, self.columns)))
        else:
            fits = [v for v in pool if tile(v).extents[0] == depth]
            right = self.r.choice(fits) if fits else b.transpose(value, (1, 0))
            made = b.dot(value, right, b.constant(0.25, (rows, tile(right).extents[1])))
        return b.map("mul", made, b.constant(0.1, (1, 1)))

    # --- results --------------------------------------------------------------------------------------------------

    def pick(self, pool: Pool, shape: tuple[int, int]) -> SSAValue:
        """A value stretched to the shape, rather a late one."""
        fits = [v for v in pool[::-1] if all(p in (1, q) for p, q in zip(tile(v).extents, shape, strict=True))]
        chosen = fits[int(self.r.random() ** 2 * len(fits))] if fits else self.b.constant(0.0, (1, 1))
        return self.b.broadcast(chosen, shape)

    def store_two(self, pool: Pool, j: SSAValue) -> None:
        for target in self.out[:2]:
            self.b.store(self.pick(pool, (self.rows, self.columns)), self.b.dense(target), [self.i, j])
