"""Tilewright compiles a model into kernels it wrote itself.

This module is the public API and nothing else. Importing it loads neither torch nor any code generator.
"""

from __future__ import annotations

__version__ = "0.1.0"
