"""The tile dialect as one object."""

from __future__ import annotations

from xdsl.ir import Dialect

from tilewright.ir.tile.compute import COMPUTE
from tilewright.ir.tile.lines import LINES
from tilewright.ir.tile.memory import MEMORY
from tilewright.ir.tile.places import PLACES
from tilewright.ir.tile.structure import STRUCTURE
from tilewright.ir.types import BufferType, IndexType, TileType, ViewType

TILE = Dialect("tile", [*STRUCTURE, *MEMORY, *PLACES, *LINES, *COMPUTE], [TileType, BufferType, ViewType, IndexType])
