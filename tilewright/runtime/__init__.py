"""What runs a compiled program: step table, memory, threads, cache, artifacts, states.

Imports `tilewright.ir`, `tilewright.errors` and itself. At import it needs numpy, safetensors and llvmlite alone:
no IR library, no torch and no code generator.
"""
