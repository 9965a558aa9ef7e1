"""Tile kernels to loop kernels: the lowering that the CPU backend and every C-like backend share.

Every tile value is evaluated where a consumer asks for it, unless placement says that it is worth keeping.

Reading order: `lower` (the ops in order), `placement` (what is inline, in registers, in scratch), `sites` and
`elementwise` (evaluating a tile at a place), `views` and `loads` (places in memory), `sweeps` (loops over a tile's
extents), then one file an op: `stores`, `reductions`, `dots`, `transposes`, `control`, `scans`, `ordering`. What keeps
work small: `indices` (bounds that are proved cost nothing), `tails` and `observed` (what lies past the data is not
computed), `definitions` and `destinations` (results take the place of what dies).
"""

from __future__ import annotations

from tilewright.passes.lower_tile_to_loops.lower import lower_kernel

__all__ = ["lower_kernel"]
