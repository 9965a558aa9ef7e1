"""`MatrixDot` on NumPy arrays, bit for bit."""

from __future__ import annotations

from typing import Final

import numpy as np

from tilewright.ir.loops.elementwise import Lanes, fma, widen_bf16

_LEAST_NORMAL: Final = np.finfo(np.float32).tiny


def multiply_add(total: Lanes, left: Lanes, right: Lanes) -> Lanes:
    """total [m, n] f32 plus left [m, 2k] times right [k, n, 2], both as bf16 bits; see `MatrixDot` for the order."""
    a, b = flushed(widen_bf16(left)), flushed(widen_bf16(right))
    chains = [np.zeros(total.shape, np.float32), np.zeros(total.shape, np.float32)]
    for k in range(b.shape[0]):
        for parity in range(2):
            x, y = a[:, 2 * k + parity, None], b[None, k, :, parity]
            chains[parity] = flushed(fma(x, y, chains[parity], fused=True))
    return flushed(flushed(total) + flushed(chains[0] + chains[1]))


def flushed(values: Lanes) -> Lanes:
    """Subnormal numbers as zeros of their sign. values: f32."""
    tiny = (np.abs(values) < _LEAST_NORMAL) & (values != 0)
    return np.where(tiny, np.copysign(np.float32(0), values), values) if tiny.any() else values
