"""Loop kernels as readable C: the printer that every C-like backend starts from.

`CLike` prints all of the loop IR but matrix registers as plain C11, one function of the kernel ABI, so a backend for a
machine with a C compiler runs every model on its first day. A dialect of C (OpenCL, a vendor's own) subclasses it and
overrides how types, memory and the function's head are spelled.

Vectors are arrays with a loop over their lanes. On a machine whose tile rules say `lanes=1` few are left: those whose
order is the canonical one of 16 lanes. The source keeps the loop IR's bits if it is compiled without contraction of
products and sums and with wrapping integers (`-ffp-contract=off -fwrapv` to gcc and clang).
"""

from tilewright.backends.clike.printer import CLike

__all__ = ["CLike"]
