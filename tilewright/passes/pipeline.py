"""The way down, on one page: every pass by name, and the order they run in.

A pass outside this package joins by an entry point of the group `tilewright.passes`: its name is the pass's name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from importlib.metadata import entry_points
from typing import Final

from tilewright.errors import PassOptionError
from tilewright.ir.passing import Pass, Pipeline

GROUP: Final = "tilewright.passes"

# name -> where the class is; a module is imported when its pass is asked for
_OWN: Final = {
    "canonicalize": "tilewright.passes.canonicalize:Canonicalize",
    "fold": "tilewright.passes.fold:Fold",
    "channels-last": "tilewright.passes.channels_last:ChannelsLast",
    "recognize": "tilewright.passes.recognize:Recognize",
    "merge-shared-lhs": "tilewright.passes.merge_shared_lhs:MergeSharedLhs",
    "expand-experts": "tilewright.passes.expand_experts:ExpandExperts",
    "hoist-weights": "tilewright.passes.hoist_weights:HoistWeights",
    "set-precision": "tilewright.passes.set_precision:SetPrecision",
    "dedupe-layers": "tilewright.passes.dedupe_layers:DedupeLayers",
    "fuse": "tilewright.passes.fuse:Fuse",
    "materialise": "tilewright.passes.materialise:Materialise",
    "inline-layers": "tilewright.passes.inline_layers:InlineLayers",
    "plan-layout": "tilewright.passes.plan_layout:PlanLayout",
    "lower-to-tile": "tilewright.passes.lower_to_tile.lowering:LowerToTile",
    "place-levels": "tilewright.passes.place_levels:PlaceLevels",
    "plan-memory": "tilewright.passes.plan_memory:PlanMemory",
}

# One form for equal things; fold gives constants whose neutral ones only canonicalize removes.
_SIMPLIFY: Final = ("canonicalize", "fold", "canonicalize")

_DEFAULT: Final = (
    *_SIMPLIFY,
    # Before norms are looked for, because channels are the last axis then; before weights are hoisted, because filters
    # are turned, and scaled by what follows their convolution, in @prepare.
    "channels-last",
    # Before layers are shared: masks are built outside the layers that read them, and patterns count once a layer.
    "recognize",
    # After recognize, whose patterns begin at products; before hoist-weights, which joins their weights once.
    "merge-shared-lhs",
    # After recognize, which finds experts; before hoist-weights, which cuts their weights once.
    "expand-experts",
    "canonicalize",
    # Before layers are shared: what depends on a layer's weights alone is an argument of the layer, as a weight is.
    "hoist-weights",
    # From here to inline-layers, work is done once per unique layer.
    "dedupe-layers",
    "fuse",
    "inline-layers",
    # After fuse, because only a matmul's own group may read its weight in panels.
    "plan-layout",
    "lower-to-tile",
    "place-levels",
    # Last: slots and barriers belong to launches that no pass moves any more.
    "plan-memory",
)

# The plan to compare intermediates with: no fusion, no sharing of layers, no reuse of memory.
_MATERIALISING: Final = (
    *_SIMPLIFY,
    "expand-experts",
    "channels-last",
    "canonicalize",
    "hoist-weights",
    "materialise",
    "plan-layout",
    "lower-to-tile",
    "place-levels",
)


class Registry(Mapping[str, Callable[[], type[Pass]]]):
    """Every pass by name: this package's, then those that other packages register as entry points."""

    def __getitem__(self, name: str) -> Callable[[], type[Pass]]:
        if name in _OWN:
            return lambda: _load(_OWN[name])
        for entry in entry_points(group=GROUP):
            if entry.name == name:
                return lambda: _checked(entry.load(), f"{entry.value} of {entry.dist.name if entry.dist else '?'}")
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        yield from _OWN
        yield from (entry.name for entry in entry_points(group=GROUP) if entry.name not in _OWN)

    def __len__(self) -> int:
        return sum(1 for _ in self)


PASSES: Final = Registry()


def default_pipeline() -> Pipeline:
    """From a captured model to launches of tile kernels; a backend's own stages follow."""
    return _pipeline(_DEFAULT)


def materialising_pipeline() -> Pipeline:
    """Every op a kernel of its own with a buffer of its own: what a wrong fusion is searched with."""
    from tilewright.passes.plan_memory import PlanMemory

    return Pipeline((*_pipeline(_MATERIALISING).passes, PlanMemory(reuse=False)))


def _pipeline(names: tuple[str, ...]) -> Pipeline:
    return Pipeline(tuple(PASSES[name]()() for name in names))


def _load(place: str) -> type[Pass]:
    module, _, name = place.partition(":")
    return _checked(getattr(import_module(module), name), place)


def _checked(found: object, place: str) -> type[Pass]:
    if not (isinstance(found, type) and issubclass(found, Pass)):
        raise PassOptionError(f"{place} is not a pass", step="name a subclass of tilewright.ir.passing.Pass there")
    return found
