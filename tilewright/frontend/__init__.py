"""Models in: torch modules, exported programs and transformers models become graph IR.

Imports `tilewright.ir`, `tilewright.errors` and itself; the capture libraries are imported when they are used.
"""
