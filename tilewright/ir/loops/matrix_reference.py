"""`MatrixDot` on NumPy arrays, bit for bit."""

from __future__ import annotations

from typing import Final

import numpy as np

from tilewright.ir.loops.elementwise import Lanes, fma, widen_bf16

_LEAST_NORMAL: Final = np.finfo(np.float32).tiny


def multiply_add(total: Lanes, left: Lanes, right: Lanes) -> Lanes:
    """total [m, n] f32 plus left [m, 2k] times right [k, n, 2], both as bf16 bits; see `MatrixDot` for the order."""
    a, b = flushed(widen_bf16(left)), flushed(widen_bf16(right))
    chains = [np.zeros(total.size, np.float32), np.zeros(total.size, np.float32)]
    for k in range(b.shape[0]):
        for parity, chain in enumerate(chains):
            x = np.broadcast_to(a[:, 2 * k + parity, None], total.shape).ravel()
            y = np.broadcast_to(b[None, k, :, parity], total.shape).ravel()
            chain[:] = flushed(fma(x, y, chain, fused=True))
    products = flushed(chains[0] + chains[1])
    return flushed(flushed(total).ravel() + products).reshape(total.shape)


def flushed(values: Lanes) -> Lanes:
    """Subnormal numbers as zeros of their sign."""
    return np.where(np.abs(values) < _LEAST_NORMAL, np.copysign(np.float32(0), values), values).astype(np.float32)
