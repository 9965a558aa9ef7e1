"""The command line: `tilewright compile | run | check | report | opt | ops | passes | ...`.

With compiler.py the only importer of every room; nothing imports this room.
"""
