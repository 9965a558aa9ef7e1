"""The passes, one a file; pipeline.py is the page that reads from top to bottom.

Imports `tilewright.ir`, `tilewright.errors` and itself.
"""
