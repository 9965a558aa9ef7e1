"""The core set of ATen: what has neither a lowering nor a decomposition is listed here, with the reason."""

from __future__ import annotations

from typing import Any

import torch

from tilewright.frontend.aten.complex import takes_parts
from tilewright.frontend.decomposing import compositions
from tilewright.frontend.registry import lowerings

WITHOUT = {
    "gradients, which nothing compiled has": (
        "aten._adaptive_avg_pool2d_backward.default", "aten.avg_pool2d_backward.default",
        "aten.convolution_backward.default",
    ),
    "random numbers": ("aten.rand.default", "aten.randn.default", "aten.randperm.default"),
    "sizes that values decide": ("aten.nonzero.default", "aten._local_scalar_dense.default"),
    "strides, which the graph does not have": ("aten.as_strided.default", "aten.sym_storage_offset.default"),
    "no Fourier transform": ("aten._fft_c2r.default", "aten._fft_r2c.default"),
    "pairs of rows, each once": ("aten._pdist_forward.default",),
    "arrives as aten.group_norm, which is lowered whole": ("aten.native_group_norm.default",),
}  # fmt: skip


def _core() -> set[str]:
    found: set[str] = set()
    for name in dir(torch.ops.aten):
        packet: Any = getattr(torch.ops.aten, name)
        for overload in packet.overloads() if hasattr(packet, "overloads") else ():
            op = getattr(packet, overload)
            if torch.Tag.core in op.tags and not op._schema.is_mutable and not overload.endswith("out"):
                found.add(str(op))
    return found


def test_the_core_operators_without_a_form_are_the_ones_listed() -> None:
    composed = {str(op) for op in compositions()}
    left = {name for name in _core() if name not in lowerings() and name not in composed and not takes_parts(name)}
    assert left == {name for names in WITHOUT.values() for name in names}
