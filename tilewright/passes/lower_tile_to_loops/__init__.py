"""Tile kernels to loop kernels: the lowering that the CPU backend and every C-like backend share."""

from __future__ import annotations

from tilewright.passes.lower_tile_to_loops.lower import lower_kernel

__all__ = ["lower_kernel"]
