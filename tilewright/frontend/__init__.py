"""Models in: torch modules, exported programs and transformers models become graph IR.

Imports `tilewright.ir`, `tilewright.errors` and itself; the capture libraries are imported when they are used.
"""

from __future__ import annotations

from tilewright.frontend.captured import Captured, Source
from tilewright.frontend.capturing import capture

__all__ = ["Captured", "Source", "capture"]
