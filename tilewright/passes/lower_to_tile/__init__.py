"""lower-to-tile: every group becomes one kernel (in a few variants) and a launch of it.

The skeletons are one file each: pointwise, reductions, running, matmul, attention, ordering, scattering, joining.
`access.py` finds how a group's values are addressed by one iteration space, `layout.py` turns that into views,
`emit.py` into tiles.
"""

from tilewright.passes.lower_to_tile.lowering import LowerToTile

__all__ = ["LowerToTile"]
