"""lower-to-tile: every group becomes one kernel (in a few variants) and a launch of it.

The skeletons are one file each, and `skeletons.py` is the table of them: what they take, refuse and are asked for.
`access.py` finds how a group's values are addressed by one iteration space, `layout.py` turns that into views,
`emit.py` into tiles.
"""

from tilewright.passes.lower_to_tile.lowering import LowerToTile

__all__ = ["LowerToTile"]
