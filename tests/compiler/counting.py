"""Holds what running kernels count against formulas and the tile interpreter."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from tilewright.compiler.instrumented import call_of
from tilewright.compiler.native_launches import LaunchCounts
from tilewright.ir.backend import kernels_of
from tilewright.ir.module import parse_module
from tilewright.ir.tile.counting import Counters, Counts
from tilewright.ir.tile.traffic import kernel_traffic
from tilewright.ir.tile_interpreter import run_module


def check_formulas(compiled: Any, counted: Iterable[LaunchCounts]) -> dict[str, Counts]:
    """Every launch counted what its kernel's formulas say; the sums by kernel."""
    kernels = kernels_of(parse_module(compiled.code.texts["tile"], "tile"))
    sums: dict[str, Counts] = {}
    for launch in counted:
        formulas = kernel_traffic(kernels[launch.kernel]).counts(launch.dims, launch.buffers)
        assert +formulas == launch.counts, launch.kernel
        sums.setdefault(launch.kernel, Counts()).update(launch.counts)
    return sums


def check_counts(
    compiled: Any, counted: Iterable[LaunchCounts], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> dict[str, Counts]:
    """The same, and the tile interpreter counts as much in the same call."""
    sums = check_formulas(compiled, counted)
    module, inputs, held, states = call_of(compiled, args, kwargs)
    interpreted: dict[str, Counters] = {}
    run_module(module, inputs, weights=held, states=states, counters=interpreted)
    assert sums == {name: +counters.bytes for name, counters in interpreted.items()}
    return sums
