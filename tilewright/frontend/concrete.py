"""The model traced at one tuple of sizes: what its Python really does there, as a graph of the operators it calls.

Every size is a plain integer and every question of layout is answered for this one layout, as in an eager run. Nothing
is computed: the tensors are fake, so a large model costs what its Python costs.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from tilewright.frontend.examples import Example
from tilewright.frontend.keywords import with_named_keywords
from tilewright.frontend.lean_tracing import WholeStack, lean_nodes
from tilewright.frontend.locations import line_of_frame
from tilewright.frontend.numbering import written
from tilewright.frontend.preserving import preserved
from tilewright.frontend.quiet import quiet
from tilewright.frontend.repeated_layers import repeating
from tilewright.frontend.replayed_layers import Departures, replaying
from tilewright.frontend.varying_lengths import with_varying_lengths

if TYPE_CHECKING:
    import torch


@dataclass
class Noticed:
    """What a model did besides computing. asked: the lines at which it asked whether it was being exported or compiled.
    changed: the attributes that it set or changed.
    """

    asked: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)


def concrete(
    model: torch.nn.Module,
    example: Example,
    *,
    places: bool,
    exporting: bool = True,
    noticed: Noticed | None = None,
    every_layer: bool = True,
) -> torch.fx.GraphModule:
    """The operators that a call with this example runs, above their decompositions, as torch.export sees them.

    Its placeholders are the model's parameters and buffers, then the tensors among the example's leaves; its output is
    the leaves of the model's output. places: nodes keep the stack they were called from, which takes half as long
    again. exporting: what the model is told when it asks whether it is being exported or compiled. noticed: receives
    what it asks and changes. every_layer: every layer's Python is run, and layers that are
    alike are not taken for the same. Raises whatever
    the model raises at these sizes, and what tracing without numbers cannot follow. The model is left as it was.
    """
    from torch.func import functional_call
    from torch.fx.experimental.proxy_tensor import make_fx
    from torch.utils import _pytree as pytree

    _, kwargs = example.call()
    model = with_named_keywords(model, kwargs)
    held = held_by(model)
    tensors = [leaf.value for leaf in example.leaves if leaf.is_tensor]

    def run(own: list[Any], given: list[Any]) -> list[Any]:
        found, state = iter(given), dict(zip(held, own, strict=True))
        args, kwargs = example.with_values([next(found) if x.is_tensor else x.value for x in example.leaves]).call()
        leaves = list(pytree.tree_leaves(functional_call(model, state, args, kwargs)))
        # a buffer that was replaced is written, as in the exported graph
        for before, after in zip(own, state.values(), strict=True):
            if after is not before:
                before.copy_(after)
        return leaves

    noticed = Noticed() if noticed is None else noticed

    def traced(layers: AbstractContextManager[None]) -> torch.fx.GraphModule:
        trace = make_fx(
            run, tracing_mode="fake", pre_dispatch=True, _allow_non_fake_inputs=True, record_stack_traces=places
        )
        with (
            preserved(model, noticed.changed),
            quiet(),
            _told(exporting, noticed.asked),
            lean_nodes(WholeStack),
            with_varying_lengths(),
            layers,
        ):
            return trace(list(held.values()), tensors)

    if not every_layer:
        return traced(repeating(model))
    departures = Departures()
    try:
        # places are those of the layer itself
        found = traced(nullcontext() if places else replaying(model, departures))
    except BaseException:
        if not departures.any:
            raise
    # layers that were replayed have the first one's memory, which says too little where memory is written
    if departures.any or (departures.replayed and written(found)):
        found = traced(nullcontext())
    return found


def held_by(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The parameters and buffers of a model, each once."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


@contextmanager
def _told(exporting: bool, asked: list[str]) -> Iterator[None]:
    """What the exporter says of itself while it traces, or an eager run: models ask, and take other ways then."""
    import torch

    compiler: Any = torch.compiler
    names = ("_is_compiling_flag", "_is_exporting_flag")
    saved = {name: getattr(compiler, name) for name in names if hasattr(compiler, name)}
    try:
        for name in saved:
            setattr(compiler, name, _Answer(exporting, asked))
        with torch.no_grad():
            yield
    finally:
        for name, value in saved.items():
            setattr(compiler, name, value)


# Libraries that ask in order to give the exporter the same numbers in another way, and whose tests hold them to it.
_EXPORTED_ALIKE: Final = ("torch", "transformers")


class _Answer(int):
    """A truth that knows who decides by it: torch's functions give its flags as they are."""

    asked: list[str]

    def __new__(cls, value: bool, asked: list[str]) -> _Answer:
        answer = super().__new__(cls, value)
        answer.asked = asked
        return answer

    def __bool__(self) -> bool:
        frame = sys._getframe(1)
        if frame.f_globals.get("__name__", "").partition(".")[0] in _EXPORTED_ALIKE:
            return int(self) != 0
        place = line_of_frame(frame)
        if place is not None and place not in self.asked:
            self.asked.append(place)
        return int(self) != 0
