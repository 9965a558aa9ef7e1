"""The way down, on one page: the passes in the order they run, and then every pass by name.

Each line names a pass; above it stand what it leaves behind and what it must come before or after. A pass outside this
package joins by an entry point of the group `tilewright.passes`: its name is the pass's name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from importlib.metadata import entry_points
from typing import Final

from tilewright.errors import PassOptionError
from tilewright.ir.passing import Pass, Pipeline

_DEFAULT: Final = (
    # One form for equal things, and constants computed; the neutral ones among them only canonicalize removes.
    "canonicalize",
    "fold",
    "canonicalize",
    # Convolutions and pools over [N, spatial..., C]. Before recognize, because norms are looked for on the last axis;
    # before hoist-weights, because filters are turned, and scaled by what follows their convolution, in @prepare.
    "channels-last",
    # What models write out by hand becomes the op that means it. Before layers are shared: masks are built outside the
    # layers that read them, and patterns count once a layer.
    "recognize",
    # (approximate-attention stands here where it is asked for: its bounds were taken of the attentions that are found
    # by now.)
    # Products of one left-hand side become one. After recognize, whose patterns begin at products; before
    # hoist-weights, which joins their weights once.
    "merge-shared-lhs",
    # Routed feed-forwards, which the frontend hands over whole, become routing and grouped products. Before
    # hoist-weights, which cuts their weights once.
    "expand-experts",
    # Recurrences over whole sequences become products inside chunks and a scan over chunks. After the step of a
    # language model is made, which continues them token by token.
    "expand-recurrences",
    # The last four leave reshapes and slices that meet.
    "canonicalize",
    # (set-precision stands here where another precision than the model's is asked for: after recognize, which knows
    # models by the casts they are written with, and before weights are laid out.)
    # What depends on weights alone moves to @prepare. Before layers are shared: what depends on a layer's weights alone
    # is an argument of the layer, as a weight is.
    "hoist-weights",
    # Equal layers become one function; from here to inline-layers, work is done once per unique layer.
    "dedupe-layers",
    # Groups, each of which becomes one kernel.
    "fuse",
    # How each attention is tiled. After fuse, which makes the groups that carry schedules; before inline-layers, so
    # that a layer's attention is weighed once.
    "attention-tiling",
    # Calls become bodies again: from here on a program is one list of steps.
    "inline-layers",
    # Weights become panels, in @prepare. After fuse, because only a matmul's own group may read its weight so.
    "plan-layout",
    # Groups become kernels of tiles, and launches of them.
    "lower-to-tile",
    # Tiles go through the memories that a machine fills by name, where it has any.
    "place-levels",
    # Slots and barriers. Last: they belong to launches that no pass moves any more.
    "plan-memory",
)


def default_pipeline() -> Pipeline:
    """From a captured model to planned launches of tile kernels. Lowering tiles to loops, or printing them, is the
    first step of compiling a kernel, which is no pass: it sees one kernel and not the module.
    """
    return Pipeline(tuple(PASSES[name]()() for name in _DEFAULT))


def materialising_pipeline() -> Pipeline:
    """The same way with every op a kernel of its own and a buffer of its own: what a wrong fusion is searched with."""
    from tilewright.passes.materialise import Materialise
    from tilewright.passes.plan_memory import PlanMemory

    unmatched = default_pipeline().without("recognize", "merge-shared-lhs", "dedupe-layers", "inline-layers")
    return unmatched.replace("fuse", Materialise()).replace("plan-memory", PlanMemory(reuse=False))


def parse_pipeline(text: str) -> Pipeline:
    """Passes by their text, this package's and those that others register. ParseError, PassOptionError."""
    return Pipeline.parse(text, PASSES)


GROUP: Final = "tilewright.passes"

# name -> where the class is; a module is imported when its pass is asked for
_OWN: Final = {
    "canonicalize": "tilewright.passes.canonicalize:Canonicalize",
    "fold": "tilewright.passes.fold:Fold",
    "channels-last": "tilewright.passes.channels_last:ChannelsLast",
    "recognize": "tilewright.passes.recognize:Recognize",
    "approximate-attention": "tilewright.passes.approximate_attention:ApproximateAttention",
    "merge-shared-lhs": "tilewright.passes.merge_shared_lhs:MergeSharedLhs",
    "expand-experts": "tilewright.passes.expand_experts:ExpandExperts",
    "expand-recurrences": "tilewright.passes.expand_recurrences:ExpandRecurrences",
    "hoist-weights": "tilewright.passes.hoist_weights:HoistWeights",
    "set-precision": "tilewright.passes.set_precision:SetPrecision",
    "dedupe-layers": "tilewright.passes.dedupe_layers:DedupeLayers",
    "fuse": "tilewright.passes.fuse:Fuse",
    "attention-tiling": "tilewright.passes.attention_tiling:AttentionTiling",
    "materialise": "tilewright.passes.materialise:Materialise",
    "inline-layers": "tilewright.passes.inline_layers:InlineLayers",
    "plan-layout": "tilewright.passes.plan_layout:PlanLayout",
    "lower-to-tile": "tilewright.passes.lower_to_tile.lowering:LowerToTile",
    "place-levels": "tilewright.passes.place_levels:PlaceLevels",
    "plan-memory": "tilewright.passes.plan_memory:PlanMemory",
}


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


def _load(place: str) -> type[Pass]:
    module, _, name = place.partition(":")
    return _checked(getattr(import_module(module), name), place)


def _checked(found: object, place: str) -> type[Pass]:
    if not (isinstance(found, type) and issubclass(found, Pass)):
        raise PassOptionError(f"{place} is not a pass", step="name a subclass of tilewright.ir.passing.Pass there")
    return found
