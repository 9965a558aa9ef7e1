"""The host: what every backend takes whose kernels run in this process, on its cores.

The native driver that walks a program's step table, the compiler from MLIR text to the host's objects with its worker
processes, and how many cores there are. It is no backend: it has no machines and prints no kernels.
"""
