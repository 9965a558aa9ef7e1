"""What a model's logits were on a user's own inputs: what approximate attention is admitted by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from xdsl.ir import Operation

from tilewright.compiler.attention_bounds import AttentionBounds
from tilewright.compiler.options import Options
from tilewright.compiler.target import Target
from tilewright.errors import ArgumentError, OptionError
from tilewright.frontend.capturing import capture
from tilewright.ir.dims import DimSpace
from tilewright.ir.graph.attention import AttentionOp
from tilewright.ir.graph.base import Setting, tensor
from tilewright.ir.graph_interpreter import GraphInterpreter
from tilewright.ir.module import functions
from tilewright.ir.passing import Context, Pipeline, run_pipeline

if TYPE_CHECKING:
    import torch

# attentions are counted where this pass has found those that are written out
_FINDS = "recognize"


def calibrate_attention(
    model: Any, calls: Sequence[tuple[Any, ...] | Mapping[str, Any]], *, dims: Any = None, **given: Any
) -> AttentionBounds:
    """See tilewright.calibrate_attention."""
    if not isinstance(calls, Sequence) or not calls:
        raise ArgumentError("calls is no list of example calls", step="write calls=[(x,), ...] or [{'ids': ids}, ...]")
    options = Options.of(given, caller="calibrate_attention()", more=("dims",))
    target = Target.of(options)
    (args, kwargs), *_ = every = [_parts(call) for call in calls]
    captured = capture(model, args, kwargs, dims, fallback=options.fallback)
    names = [p.name for p in target.pipeline.passes]
    if _FINDS not in names:
        raise OptionError(f"the pipeline has no {_FINDS}, which finds attention", step="leave passes out")
    found = Pipeline(target.pipeline.passes[: names.index(_FINDS) + 1])
    ctx = Context(
        target.machine, DimSpace(captured.dims), target.told(options), read_weight=captured.weights.__getitem__
    )
    run_pipeline(found, captured.module, ctx)
    watching = _Watching(captured.module, captured.weights, captured.states)
    for args, kwargs in every:
        watching.states = {name: value.clone() for name, value in captured.states.items()}
        watching.run(_tensors(captured.signature.flatten(args, kwargs)))
    return AttentionBounds(*watching.figures, len(every))


def _parts(call: tuple[Any, ...] | Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return ((), dict(call)) if isinstance(call, Mapping) else (tuple(call), {})


def _tensors(leaves: Sequence[Any]) -> list[torch.Tensor]:
    import torch

    return [torch.as_tensor(leaf) for leaf in leaves]


class _Watching(GraphInterpreter):
    """Runs a module and remembers what attentions are given."""

    def __init__(self, module: Any, weights: Mapping[str, torch.Tensor], states: Mapping[str, torch.Tensor]) -> None:
        super().__init__(module, weights=weights, states=dict(states))
        found = [op for f in functions(module).values() for op in f.walk() if isinstance(op, AttentionOp)]
        self.norms = {op: [0.0] * (tensor(op.q).dims[-3].constant or 0) for op in found}
        self.logits = {op: list(zeros) for op, zeros in self.norms.items()}

    @property
    def figures(self) -> tuple[tuple[tuple[float, ...], ...], tuple[tuple[float, ...], ...]]:
        return tuple(map(tuple, self.norms.values())), tuple(map(tuple, self.logits.values()))

    def _run(
        self, op: Operation, operands: list[Any], setting: Setting, sizes: dict[str, int]
    ) -> tuple[torch.Tensor, ...]:
        if isinstance(op, AttentionOp) and operands[0].numel() and operands[1].numel():
            self._note(op, operands[0].double(), operands[1].double())
        return super()._run(op, operands, setting, sizes)

    def _note(self, op: AttentionOp, q: torch.Tensor, k: torch.Tensor) -> None:
        import torch

        scale = abs(op.scale.data)
        for head in range(q.shape[-3]):
            queries, keys = (x[..., n, :, :] for x, n in ((q, head), (k, head // op.group)))
            norm = scale * float(queries.norm(dim=-1).max()) * float(keys.norm(dim=-1).max())
            # a block of queries at a time: the logits of all may be more than memory
            largest = max(float((block @ keys.mT).abs().max()) for block in torch.split(queries, 256, -2))
            self.norms[op][head] = max(self.norms[op][head], norm)
            self.logits[op][head] = max(self.logits[op][head], scale * largest)
