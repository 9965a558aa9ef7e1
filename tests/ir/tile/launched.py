"""A kernel as a whole module: one launch of it from @main, its dims the module's. And such a module with one change."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np
from xdsl.dialects.builtin import ModuleOp

from tilewright.ir.dims import Dim, Expr
from tilewright.ir.graph.structure import FuncOp
from tilewright.ir.module import new_module
from tilewright.ir.tile.base import buffer
from tilewright.ir.tile.structure import KernelOp, LaunchOp
from tilewright.ir.types import TensorType

# what types do not repeat: index arithmetic, strides, offsets, steps, grids, coordinates, loop bounds
_FREE = re.compile(
    r"(?:strides = |offset = |value = |order = |tiles = |steps = |limits = |at=|offsets=|args=)(\[[^\]]*\])"
    r"|(?:step|page|axis) = \d+|tile\.for\([^)]*\)|tile\.view_\w+\([^)]*\)|tile\.compare\([^)]*\)"
)
_OTHERS = (0, 1, -1, 2, 3, 7, 16, 64, 1000, 10**9, 2**40, 2**62, 2**63, -(2**63), 10**30)


def launched(kernel: KernelOp, most: Mapping[str, int], least: int = 0) -> ModuleOp:
    """A module whose @main launches the kernel; its dims go up to `most`."""
    module = new_module([Dim(name, least, most[name]) for name in kernel.dims.data])
    kernel = kernel.clone()
    types = [TensorType(buffer(v).data) for v in kernel.buffers]
    count = len(kernel.inputs)
    main = FuncOp.begin("main", {f"x{i}": t for i, t in enumerate(types[:count])})
    launch = LaunchOp.make(
        list(main.block.args), result_types=[types[count:]], callees=(kernel.sym_name.data,), guard=(Expr.of(0),),
        limits=(), dims=tuple(Expr.of(name) for name in kernel.dims.data),
    )  # fmt: skip
    main.block.add_op(launch)
    main.finish(list(launch.outputs), [f"y{i}" for i in range(len(launch.outputs))])
    module.body.block.add_ops([main, kernel])
    return module


def mutated(text: str, rng: np.random.Generator, changes: int = 1) -> str:
    """The text with some of its numbers changed. Mostly those that no type repeats, so that much of it is still IR."""
    for _ in range(changes):
        places = [(m.start(), m.end()) for m in re.finditer(r"(?<![A-Za-z_])-?\d+", text)]
        if rng.random() < 0.8:
            free = [m.span() for m in _FREE.finditer(text)]
            places = [(a, b) for a, b in places if any(first <= a and b <= last for first, last in free)]
        start, end = places[int(rng.integers(len(places)))]
        old = int(text[start:end])
        near = [old + 1, old - 1, old * 2, old * 1000, -old]
        new = int(rng.choice(near)) if rng.random() < 0.7 else _OTHERS[int(rng.integers(len(_OTHERS)))]
        if text[start - 1] == "%":
            new = int(rng.integers(0, 12))
        new += new == old
        text = text[:start] + str(new) + text[end:]
    return text
