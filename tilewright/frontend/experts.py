"""Routed experts of transformers models: whole as one operator, or as products over segments around the model's gate.

Transformers looks up how an experts module runs in a registry; during a capture it finds the function here. A module
whose gate is activation(gate) * up becomes `graph.experts`; one with a gate of its own (clamped, interleaved, normed)
becomes routing and grouped products, with the gate traced op by op between them.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import torch

EXPERTS: Final = "tilewright.experts.default"
ROUTING: Final = "tilewright.routing.default"
GROUPED: Final = "tilewright.grouped_matmul.default"

# activation modules, of torch and transformers, that are a function of the scalar table with nothing to set
_ACTIVATIONS: Final = {
    "SiLU": "silu",
    "SiLUActivation": "silu",
    "ReLU": "relu",
    "GELUActivation": "gelu",
    "GELUTanh": "gelu_tanh",
}


@cache
def register(implementation: str) -> None:
    """Makes `forward` what a config's experts implementation of that name runs. Once in a process."""
    from transformers.integrations.moe import ExpertsInterface

    _define()
    ExpertsInterface.register(implementation, forward)


@cache
def _define() -> Any:
    """Registers the operators; returns the library object that keeps them registered.

    experts: as graph.experts. routing: integers [S] -> rows, order i32 [S], offsets i32 [experts + 1], as graph.route
    and graph.slots. grouped_matmul: as graph.grouped_matmul.
    """
    import torch

    library: Any = torch.library.Library("tilewright", "FRAGMENT")  # type: ignore[no-untyped-call]
    library.define(
        "experts(Tensor x, Tensor indices, Tensor weights, Tensor gate_up, Tensor down, Tensor? gate_up_bias, "
        "Tensor? down_bias, str activation, bool gated) -> Tensor"
    )
    library.define("routing(Tensor indices, int experts, int each) -> (Tensor, Tensor, Tensor)")
    library.define(
        "grouped_matmul(Tensor a, Tensor b, Tensor rows, Tensor targets, Tensor offsets, Tensor? bias) -> Tensor"
    )

    def experts(x: torch.Tensor, *_: Any) -> torch.Tensor:
        return torch.empty_like(x)

    def routing(indices: torch.Tensor, experts: int, each: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        listed = indices.new_empty(indices.shape, dtype=torch.int32)
        return listed, torch.empty_like(listed), indices.new_empty([experts + 1], dtype=torch.int32)

    def grouped_matmul(a: torch.Tensor, b: torch.Tensor, rows: torch.Tensor, *_: Any) -> torch.Tensor:
        return a.new_empty((rows.shape[0], b.shape[2]))

    for made in (experts, routing, grouped_matmul):
        torch.library.register_fake(f"tilewright::{made.__name__}", made, lib=library)
    return library


def forward(module: Any, x: torch.Tensor, indices: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """An experts module's call, as transformers' own implementations take it: x [T, D], indices and weights [T, k]."""
    import torch
    from transformers.integrations import moe

    gated = bool(module.has_gate)
    up = module.gate_up_proj if gated else module.up_proj
    names = ("gate_up_proj_bias" if gated else "up_proj_bias", "down_proj_bias")
    up_bias, down_bias = (getattr(module, name) if module.has_bias else None for name in names)
    plain_gate = type(module)._apply_gate is moe._default_apply_gate
    activation = _ACTIVATIONS.get(type(module.act_fn).__name__) if hasattr(module, "act_fn") else None
    if activation is not None and (plain_gate or not gated) and not module.has_post_expert_norm:
        halves = (up.mT, module.down_proj.mT) if module.is_transposed else (up, module.down_proj)
        found: torch.Tensor = torch.ops.tilewright.experts(
            x, indices, weights, *halves, up_bias, down_bias, activation, gated
        )
        return found
    each = indices.shape[1]
    rows, order, offsets = torch.ops.tilewright.routing(indices.reshape(-1), up.shape[0], each)

    def product(a: torch.Tensor, b: torch.Tensor, read: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        matrices = b if module.is_transposed else b.mT
        made: torch.Tensor = torch.ops.tilewright.grouped_matmul(a, matrices, read, order, offsets, bias)
        return made

    inner = product(x, up, rows, up_bias)
    inner = module._apply_gate(inner) if gated else module.act_fn(inner)
    answer = product(inner, module.down_proj, order, down_bias)
    if module.has_post_expert_norm:
        answer = module.post_expert_norm(answer)
    answer = answer.view(*indices.shape, x.shape[-1]) * weights.unsqueeze(-1)
    return answer.sum(dim=1).to(x.dtype)
