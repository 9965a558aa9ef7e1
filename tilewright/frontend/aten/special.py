"""Functions of statistics that the scalar table does not have, from those that it has."""

from __future__ import annotations

from typing import Final

from xdsl.ir import SSAValue

from tilewright.frontend.aten.reduction import wide
from tilewright.frontend.builder import Builder
from tilewright.frontend.registry import lowers
from tilewright.ir.dtypes import BF16, F32, F64
from tilewright.ir.graph.base import tensor

# (1 + 2x) erfc(x) exp(x^2) for x >= 0 as a polynomial of t = (x - 4) / (x + 4), the substitution of Shepherd and
# Laframboise 1981: interpolated at the Chebyshev points in 50 digits, from the constant on.
_CENTRE: Final = 4.0
_TAIL: Final = (
    1.23299511862555251, -0.139621116840557007, 0.0153796521026184024, 0.0680970542542067264, -0.10103906603618064,
    0.0937328350110569074, -0.0663303658154165124, 0.037167515383604771, -0.0161977340204515961,
    0.00503197101723425386, -0.000757773525738245777, -0.00019926100185442791, 0.000150622571370431435,
    -0.0000243876912643060454, -0.000011224122281497544, 5.68940908996507269e-6, 2.96840917253130712e-7,
    -8.01917468432719112e-7, 7.20251758483600475e-8, 9.29077287303221446e-8, -1.673812797437216e-8,
    -6.98402110015854199e-9, 1.64031836967527082e-9,
)  # fmt: skip


@lowers("aten.erfc.default", "aten.special_erfc.default")
def erfc(c: Builder, self: SSAValue) -> SSAValue:
    """With all digits where it is small: there 1 - erf(x) has none left."""
    x = wide(c, c.cast(self, c.result.dtype))
    dtype = tensor(x).dtype
    size = c.map("abs", x, dtype=dtype)
    # beyond, the value is 0 in every dtype, and infinities would meet each other
    size = c.select(c.map("lt", size, 30.0, dtype=dtype), size, 30.0, dtype)
    t = c.map("div", c.map("sub", size, _CENTRE, dtype=dtype), c.map("add", size, _CENTRE, dtype=dtype), dtype=dtype)
    found = c.full(_TAIL[-1], tensor(x).dims, dtype)
    for coefficient in reversed(_TAIL[:-1]):
        found = c.map("add", c.map("mul", found, t, dtype=dtype), coefficient, dtype=dtype)
    found = c.map("div", found, c.map("add", c.map("mul", size, 2.0, dtype=dtype), 1.0, dtype=dtype), dtype=dtype)
    # x^2 as the exact square of x's first digits and the rest: an error of x^2 is one of the same size in exp(-x^2)
    first = c.cast(c.cast(size, F32 if dtype == F64 else BF16), dtype)
    rest = c.map("mul", c.map("sub", size, first, dtype=dtype), c.map("add", size, first, dtype=dtype), dtype=dtype)
    for part in (c.map("mul", first, first, dtype=dtype), rest):
        found = c.map("mul", found, c.map("exp", c.map("neg", part, dtype=dtype), dtype=dtype), dtype=dtype)
    found = c.select(c.map("lt", x, 0, dtype=dtype), c.map("sub", 2.0, found, dtype=dtype), found, dtype)
    return c.cast(c.select(c.map("isnan", x, dtype=dtype), x, found, dtype), c.result.dtype)
