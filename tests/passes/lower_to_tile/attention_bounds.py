"""What an attention's result may differ by from float64: as rounding explains, and as torch's own does.

Where logits are thousands, a row's result hangs on the rounding of one or two, and torch may have been lucky: of sums
of the same terms in two orders, one is twice as far off as the other in every third case. What torch is off by is
therefore the most over orders of the features, in which a product's sum has none of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt
from typing import Final

import numpy as np
import torch

UNIT: Final = {"f32": 2.0**-24, "bf16": 2.0**-8}
_ORDERS: Final = 64


def check_bounds(
    case: str,
    error: float,
    *,
    dtype: str,
    large: float,
    keys: int,
    most: float,
    size: int,
    own: Callable[[torch.Tensor], float],
    rng: np.random.Generator,
) -> bool:
    """Asserts both bounds on the largest error; whether the second one holds for the features as they lie, too.

    large: L, the largest sum of magnitudes behind a logit, 1 at least. most: the largest magnitude of a value. size:
    features. own: what torch is off by with the features in an order; NaN where it has no number.
    """
    unit = UNIT[dtype]
    bound = (4 * large + 2 * sqrt(max(1, keys))) * unit * most
    assert error <= bound, f"{case}: {error:.3g} off, {bound:.3g} allowed"
    own_most = own(torch.arange(size))
    if np.isnan(own_most) or error <= 2 * own_most + 8 * unit * most:
        return True
    for _ in range(_ORDERS):
        own_most = max(own_most, own(torch.from_numpy(rng.permutation(size))))
        if error <= 2 * own_most + 8 * unit * most:
            return False
    raise AssertionError(f"{case}: {error:.3g} off, torch {own_most:.3g} at most in {_ORDERS} orders of the features")
