"""Runs a captured module through the graph interpreter and compares every output leaf with the model's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.utils._pytree as pytree

from tilewright.frontend import Captured, capture
from tilewright.ir.binding import Bound, bind
from tilewright.ir.dims import DimSpace
from tilewright.ir.graph_interpreter import GraphInterpreter
from tilewright.ir.verifier import verify


def run(captured: Captured, *args: Any, states: dict[str, torch.Tensor] | None = None, **kwargs: Any) -> Any:
    """The captured program's output for one call, in the model's own structure; mutated inputs are written back."""
    signature = captured.signature
    tensors = [torch.as_tensor(t) for t in signature.flatten(args, kwargs)]
    interpreter = GraphInterpreter(captured.module, weights=captured.weights, states=states)
    results = list(interpreter.run(tensors).values())
    bounds = [Bound(i.name, i.dims, tuple(t.shape)) for i, t in zip(signature.tensors, tensors, strict=True)]
    sizes = bind(bounds, DimSpace(captured.dims))
    assert all(guard.holds(sizes) for guard in captured.guards), [str(g) for g in captured.guards]
    for name, index in signature.mutations:
        place = [i.name for i in signature.tensors].index(name)
        tensors[place].copy_(results[index])
    return signature.rebuild(results, sizes)


def assert_same(found: Any, expected: Any, *, rtol: float = 2e-5, atol: float = 2e-5) -> None:
    """Equal structure, dtypes and shapes, numbers within a tolerance."""
    ours, our_spec = pytree.tree_flatten(found)
    theirs, their_spec = pytree.tree_flatten(expected)
    assert our_spec == their_spec
    for mine, eager in zip(ours, theirs, strict=True):
        if not isinstance(eager, torch.Tensor):
            assert mine == eager
            continue
        assert mine.dtype == eager.dtype
        torch.testing.assert_close(mine, eager, rtol=rtol, atol=atol, equal_nan=True)


def captured_equals_eager(
    model: torch.nn.Module,
    calls: Sequence[tuple[Any, ...]],
    dims: Mapping[str, Any] | None = None,
    *,
    rtol: float = 2e-5,
    atol: float = 2e-5,
) -> Captured:
    """Captures with the first call as example and compares all calls; returns what was captured."""
    model = model.eval()
    captured = capture(model, calls[0], None, dims)
    verify(captured.module)
    for args in calls:
        with torch.no_grad():
            expected = model(*args)
        assert_same(run(captured, *args), expected, rtol=rtol, atol=atol)
    return captured
