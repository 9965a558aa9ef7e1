"""Testing passes: build IR from text, run it, and ground a pass by running a module before and after on random inputs.

    after = ground(TEXT, [Canonicalize()])            # fails unless both compute the same
    after = ground(TEXT, "canonicalize,fold", sizes={"tokens": 7}, exact=True)

Grounding comes first in a pass's test; then check the few facts of the text that matter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from xdsl.dialects.builtin import ModuleOp

from tilewright.errors import NumericMismatchError
from tilewright.ir.dtypes import DTYPES
from tilewright.ir.equivalence import Sizes, compare, depth, draw_values, narrowest, outcome, size_list, unit_of, width
from tilewright.ir.graph_interpreter import interpret
from tilewright.ir.machine import Level, Machine, TileRules, Unit
from tilewright.ir.module import dim_space, parse_module, print_module
from tilewright.ir.passing import Context, Pass, Pipeline, run_pipeline
from tilewright.ir.tile_interpreter import tile_launcher
from tilewright.option_names import known_options

if TYPE_CHECKING:
    import torch

Passes: TypeAlias = "str | Pass | Sequence[Pass] | Pipeline"

MACHINE = Machine(
    name="test",
    family="test",
    cores=2,
    units=(
        Unit("matrix", {"f32": 1e11}, ("cache", "registers")),
        Unit("vector", {"f32": 3e10}, ("cache", "registers")),
    ),
    levels=(
        Level("memory", None, 1e10, shared=True),
        Level("cache", 1 << 20, 1e11),
        Level("registers", 2048, 1e12, "registers"),
    ),
    rules=TileRules(lanes=16, registers=32, dot=((4, 4, 2), (None, 14, 2)), panel=32),
    launch=1e-6,
)


@known_options()
def ir(source: str | ModuleOp) -> ModuleOp:
    """A module of its own: parsed from text, or cloned."""
    return parse_module(source) if isinstance(source, str) else source.clone()


@known_options()
def run(
    source: str | ModuleOp,
    inputs: Mapping[str, torch.Tensor],
    *,
    weights: Mapping[str, torch.Tensor] | None = None,
    states: Mapping[str, torch.Tensor] | None = None,
    wide: bool = False,
) -> dict[str, torch.Tensor]:
    """What the module's @main gives by the interpreters, results by name; wide: every float of graph ops in float64."""
    module = ir(source)
    return interpret(
        module, inputs, weights=weights, states=dict(states or {}), wide=wide, launch=tile_launcher(module)
    )


def context(module: ModuleOp, **stated: Any) -> Context:
    """A context for passes on this module, with the test machine unless `machine` is stated."""
    return Context(**{"machine": MACHINE, "dims": dim_space(module), **stated})


@known_options()
def transform(source: str | ModuleOp, passes: Passes, ctx: Context | None = None) -> ModuleOp:
    """A new module: `source` after the passes, verified after each."""
    module = ir(source)
    run_pipeline(_pipeline(passes), module, context(module) if ctx is None else ctx)
    return module


@known_options()
def ground(
    source: str | ModuleOp,
    passes: Passes,
    *,
    sizes: Sizes | Sequence[Sizes] | None = None,
    seed: int = 0,
    inputs: Mapping[str, torch.Tensor] | None = None,
    rounding: str = "f64",
    exact: bool = False,
    ctx: Context | None = None,
) -> ModuleOp:
    """Runs the passes and asserts that the module before and after compute the same; gives the module after.

    sizes: of the named dims, one mapping or several; drawn from their bounds, the least ones among them, if not given.
    inputs: values for some arguments (in float64 for floats) instead of random ones; integers are drawn so that they
    can index every gathered axis. States start random, and what they end as is compared, too.

    Two runs are compared at each size. In float64, results may differ by rounding alone: by
    2^-digits(rounding) * number of ops * longest reduction * largest magnitude of the result. `rounding` names a wider
    bound's dtype, for passes that bind a constant rounded to it. In the declared dtypes, by the same with the narrowest
    float's digits if they are fewer, or not at all where `exact` is stated: then every bit is equal, signs of zero too,
    and NaN equals NaN.

    Raises NumericMismatchError naming the result, the sizes and the seed.
    """
    import numpy as np

    before = ir(source)
    after = transform(before, passes, ctx)
    text = print_module(after)
    if print_module(parse_module(text)) != text:
        raise NumericMismatchError(
            "the module after the passes does not print and parse back", step="compare the texts"
        )
    rng = np.random.default_rng(seed)
    for chosen in size_list(before, sizes, rng):
        given = draw_values(before, chosen, rng)
        given["inputs"].update(inputs or {})
        for wide in (True, False):
            old, new = (outcome(m, given, wide) for m in (before, after))
            unit = max(unit_of(DTYPES[rounding]), 0.0 if wide else unit_of(narrowest(before, after)))
            bits = exact and not wide
            slack = 0.0 if bits else unit * depth(before) * width(before, chosen)
            for name, wanted in old.items():
                compare(name, wanted, new[name], slack, bits, f"sizes {dict(chosen)}, seed {seed}, wide {wide}")
    return after


def _pipeline(passes: Passes) -> Pipeline:
    if isinstance(passes, str):
        from tilewright.passes.pipeline import parse_pipeline

        return parse_pipeline(passes)
    if isinstance(passes, Pipeline):
        return passes
    return Pipeline((passes,) if isinstance(passes, Pass) else tuple(passes))
