"""Whether two modules compute the same: random values for what they read, their outcome, and the bound of rounding."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

from xdsl.dialects.builtin import ModuleOp
from xdsl.ir import Operation, SSAValue

from tilewright.errors import InterpreterError, NumericMismatchError, OptionError
from tilewright.ir.dtypes import DTYPES, DType
from tilewright.ir.entry_attributes import guards
from tilewright.ir.graph.attention import AttentionOp
from tilewright.ir.graph.base import GraphOp, tensor
from tilewright.ir.graph.contraction import MatmulOp
from tilewright.ir.graph.experts import ExpertsOp
from tilewright.ir.graph.indexing import GatherOp, PutAlongOp, ScatterOp, StateUpdateOp, TakeAlongOp
from tilewright.ir.graph.linear_attention import LinearAttentionOp
from tilewright.ir.graph.reduction import CumulativeOp, NormOp, ReduceOp, SoftmaxOp
from tilewright.ir.graph.routing import GroupedMatmulOp
from tilewright.ir.graph.windows import ConvolutionOp, PoolOp
from tilewright.ir.graph_interpreter import interpret
from tilewright.ir.module import dim_space, function, parse_module, print_module, states, weights
from tilewright.ir.tile.structure import LaunchOp
from tilewright.ir.tile_interpreter import tile_launcher
from tilewright.ir.types import TensorType

if TYPE_CHECKING:
    import numpy as np
    import torch

Sizes: TypeAlias = Mapping[str, int]
Values: TypeAlias = "Mapping[str, Mapping[str, torch.Tensor]]"

_NEAR = 9  # how far above its least value a size is drawn at first; twice as far each time that many draws fail
_TRIES_EACH = 32
_TRIES = 10 * _TRIES_EACH


def size_list(module: ModuleOp, given: Sizes | Sequence[Sizes] | None, rng: np.random.Generator) -> list[Sizes]:
    """The sizes given, or the least of every dim and two draws near them, as far as the module's guards admit them.

    InterpreterError where no drawn sizes are admitted.
    """
    if isinstance(given, Mapping):
        return [given]
    if given is not None:
        return list(given)
    dims, held = dim_space(module).dims.values(), guards(module)
    found: list[Sizes] = []
    least = {d.name: d.min for d in dims}
    if all(guard.holds(least) for guard in held):
        found.append(least)
    if not least:
        return found
    for tried in range(_TRIES):
        reach = _NEAR << (tried // _TRIES_EACH)
        drawn = {
            d.name: int(rng.integers(d.min, d.min + reach + 1 if d.max is None else min(d.min + reach, d.max) + 1))
            for d in dims
        }
        if all(guard.holds(drawn) for guard in held):
            found.append(drawn)
        if len(found) == 3:
            break
    if not found:
        raise InterpreterError(
            f"no sizes were found that the guards admit: {', '.join(map(str, held))}",
            step="state sizes that they admit",
        )
    return found


def draw_values(module: ModuleOp, sizes: Sizes, rng: np.random.Generator) -> dict[str, dict[str, torch.Tensor]]:
    """Random "inputs", "weights" and "states" by name: floats in float64, integers that index every gathered axis."""
    index_limit = min([8, *(_index_limit(op, sizes) for op in module.walk())])
    arguments = {name: tensor(v) for name, v in function(module, "main").arguments.items()}

    def draw(types: Mapping[str, TensorType]) -> dict[str, torch.Tensor]:
        return {name: _random(t, sizes, rng, index_limit) for name, t in types.items()}

    return {"inputs": draw(arguments), "weights": draw(weights(module)), "states": draw(states(module))}


def _random(kind: TensorType, sizes: Sizes, rng: np.random.Generator, index_limit: int) -> torch.Tensor:
    import torch

    shape = tuple(d.evaluate(sizes) for d in kind.dims)
    if kind.dtype.is_float:
        return torch.from_numpy(rng.standard_normal(shape))
    if kind.dtype.kind == "bool":
        return torch.from_numpy(rng.random(shape) < 0.7)
    return torch.from_numpy(rng.integers(0, max(index_limit, 1), shape)).to(getattr(torch, kind.dtype.numpy().name))


def _index_limit(op: Operation, sizes: Sizes) -> int:
    """The size of the axis an op indexes by values; no limit for other ops."""
    if isinstance(op, (GatherOp, TakeAlongOp, ScatterOp, PutAlongOp)):
        return tensor(op.x).dims[op.axis.data].evaluate(sizes)
    if isinstance(op, StateUpdateOp):
        return tensor(op.state).dims[op.axis.data].evaluate(sizes)
    return 1 << 30


def widened(module: ModuleOp) -> ModuleOp:
    """The module with every float dtype made f64, in kernels, too: what it computes apart from rounding."""
    text = re.sub(r"(?<=, )(bf16|f16|f32)(?=>)", "f64", print_module(module))
    return parse_module(re.sub(r'(?<=dtype = ")(bf16|f16|f32)(?=")', "f64", text))


def outcome(module: ModuleOp, given: Values, wide: bool) -> dict[str, torch.Tensor]:
    """Results and final states by name, in float64 or in the declared dtypes; kernels run in the tile interpreter."""
    import torch

    from tilewright.ir.dtypes import torch_name

    if wide and any(isinstance(op, LaunchOp) for op in module.walk()):
        # a kernel computes in the dtypes that it declares
        module = widened(module)

    def fit(values: Mapping[str, torch.Tensor], types: Mapping[str, TensorType]) -> dict[str, torch.Tensor]:
        if wide:
            return dict(values)
        return {n: v.to(getattr(torch, torch_name(types[n].dtype))) for n, v in values.items() if n in types}

    arguments = {name: tensor(v) for name, v in function(module, "main").arguments.items()}
    kept = fit(given["states"], states(module))
    found = interpret(
        module,
        fit(given["inputs"], arguments),
        weights=fit(given["weights"], weights(module)),
        states=kept,
        wide=wide,
        launch=tile_launcher(module),
    )
    return {**found, **{f"state {name}": value for name, value in kept.items()}}


def unit_of(dtype: DType) -> float:
    """The distance from 1 to the next number of a float dtype."""
    digits = {"f64": 52, "f32": 23, "f16": 10, "bf16": 7}
    if dtype.name not in digits:
        raise OptionError(f"rounding {dtype.name!r} is not a float dtype", step=f"use one of {', '.join(digits)}")
    return 2.0 ** -digits[dtype.name]


def narrowest(*modules: ModuleOp) -> DType:
    """The float dtype with the fewest digits that any value has."""
    found = {_element(v) for m in modules for op in m.walk() for v in op.results}
    found |= {_element(v) for m in modules for f in m.walk() for r in f.regions for b in r.blocks for v in b.args}
    return next((DTYPES[n] for n in ("bf16", "f16", "f32") if n in found), DTYPES["f64"])


def _element(value: SSAValue) -> str:
    return value.type.dtype.name if isinstance(value.type, TensorType) else ""


def depth(module: ModuleOp) -> int:
    """The number of ops, which no chain of them exceeds."""
    return 1 + sum(isinstance(op, GraphOp) for op in module.walk())


def width(module: ModuleOp, sizes: Sizes) -> int:
    """The most terms that one op adds up."""
    return max([1, *(_terms(op, sizes) for op in module.walk())])


def _terms(op: Operation, sizes: Sizes) -> int:
    match op:
        case MatmulOp():
            return tensor(op.a).dims[-1].evaluate(sizes)
        case GroupedMatmulOp():
            return tensor(op.a).dims[-1].evaluate(sizes)
        case ExpertsOp():
            # two products after each other, and a sum over slots
            hidden, slots = tensor(op.down).dims[2], tensor(op.indices).dims[1]
            return (tensor(op.x).dims[1] + hidden + slots).evaluate(sizes)
        case AttentionOp():
            return tensor(op.q).dims[-1].evaluate(sizes) + tensor(op.k).dims[-2].evaluate(sizes)
        case LinearAttentionOp():
            # what a state takes in over all steps, and a row of it
            return (tensor(op.queries).dims[1] + tensor(op.queries).dims[3]).evaluate(sizes)
        case ConvolutionOp():
            return math.prod(d.evaluate(sizes) for d in (op.depth, *op.windows))
        case PoolOp():
            return math.prod(op.window.data)
        case ReduceOp():
            return math.prod(tensor(op.x).dims[a].evaluate(sizes) for a in op.axes.data)
        case SoftmaxOp() | CumulativeOp():
            return tensor(op.x).dims[op.axis.data].evaluate(sizes)
        case NormOp():
            return tensor(op.x).dims[-1].evaluate(sizes)
        case _:
            return 1


def compare(name: str, wanted: torch.Tensor, found: torch.Tensor, slack: float, bits: bool, at: str) -> None:
    """Raises where two results differ: in shape, dtype, in what is not finite, or by more than slack * magnitude."""
    import torch

    if found.shape != wanted.shape or found.dtype != wanted.dtype:
        reason = f"is {found.dtype}{list(found.shape)}, was {wanted.dtype}{list(wanted.shape)}"
    elif not wanted.is_floating_point():
        wrong = int((wanted != found).sum())
        reason = f"differs in {wrong} of {wanted.numel()} elements" if wrong else ""
    elif bits:
        same = (wanted == found) & (wanted.signbit() == found.signbit()) | (wanted.isnan() & found.isnan())
        reason = f"differs in the bits of {int((~same).sum())} of {wanted.numel()} elements" if not same.all() else ""
    else:
        a, b = wanted.double(), found.double()
        finite = a.isfinite() & b.isfinite()
        unlike = ~finite & ~((a == b) | (a.isnan() & b.isnan()))
        scale = max(1.0, float(torch.where(finite, a.abs(), 0).max()) if a.numel() else 1.0)
        off = float(torch.where(finite, (a - b).abs(), 0).max()) if a.numel() else 0.0
        reason = f"has {int(unlike.sum())} NaN or infinite elements that differ" if unlike.any() else ""
        if not reason and off > slack * scale:
            reason = f"is off by {off:.3g}, {slack * scale:.3g} is rounding"
    if reason:
        raise NumericMismatchError(f"{name} {reason} ({at})", step="run the pass with a limit on ctx to bisect")
