"""Machines: one folder a family, each with its emitter and its executor.

Imports `tilewright.ir`, `tilewright.errors` and itself; a toolchain is imported when it is used.
"""
