"""The model traced at one tuple of sizes: what its Python really does there, as a graph of the operators it calls.

Every size is a plain integer and every question of layout is answered for this one layout, as in an eager run. Nothing
is computed: the tensors are fake, so a large model costs what its Python costs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tilewright.frontend.examples import Example
from tilewright.frontend.keywords import with_named_keywords
from tilewright.frontend.lean_tracing import WholeStack, lean_nodes
from tilewright.frontend.quiet import quiet

if TYPE_CHECKING:
    import torch


def concrete(model: torch.nn.Module, example: Example, *, places: bool) -> torch.fx.GraphModule:
    """The operators that a call with this example runs, above their decompositions, as torch.export sees them.

    Its placeholders are the tensors among the example's leaves, its output the leaves of the model's output. places:
    nodes keep the stack they were called from, which takes half as long again. Raises whatever the model raises at
    these sizes, and what tracing without numbers cannot follow. Whoever calls it puts the model's attributes back.
    """
    from torch.fx.experimental.proxy_tensor import make_fx
    from torch.utils import _pytree as pytree

    _, kwargs = example.call()
    model = with_named_keywords(model, kwargs)
    tensors = [leaf.value for leaf in example.leaves if leaf.is_tensor]
    buffers = dict(model.named_buffers())

    def run(*given: Any) -> list[Any]:
        found = iter(given)
        args, kwargs = example.with_values([next(found) if x.is_tensor else x.value for x in example.leaves]).call()
        leaves = list(pytree.tree_leaves(model(*args, **kwargs)))
        # a buffer that was replaced is written, as in the exported graph
        for name, buffer in model.named_buffers():
            if name in buffers and buffer is not buffers[name]:
                buffers[name].copy_(buffer)
        return leaves

    traced = make_fx(
        run, tracing_mode="fake", pre_dispatch=True, _allow_non_fake_inputs=True, record_stack_traces=places
    )
    with quiet(), _as_exporting(), lean_nodes(WholeStack):
        return traced(*tensors)


@contextmanager
def _as_exporting() -> Iterator[None]:
    """What the exporter says of itself while it traces: models ask, and take other ways then."""
    import torch

    compiler: Any = torch.compiler
    names = ("_is_compiling_flag", "_is_exporting_flag")
    saved = {name: getattr(compiler, name) for name in names if hasattr(compiler, name)}
    try:
        for name in saved:
            setattr(compiler, name, True)
        with torch.no_grad():
            yield
    finally:
        for name, value in saved.items():
            setattr(compiler, name, value)
