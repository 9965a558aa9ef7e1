"""The IR: the dialects graph, tile and queue, dims, types, reference semantics and costs.

Also the types Pass, Machine and Backend. Imports `tilewright.errors` and itself, nothing above it.
"""
