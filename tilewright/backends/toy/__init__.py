"""The toy backend: loops printed as plain C and compiled by the host's own compiler. The example for new backends.

It is the scalar rung: its machine has one lane, so nearly all loops are scalar loops, and every op runs. A program made
with it runs like any other of the host: same kernel ABI, same driver, same runtime.
"""

from tilewright.backends.toy.manifest import backend

__all__ = ["backend"]
