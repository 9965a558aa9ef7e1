"""What is wrong with a dim's name and bounds, and the declaration that comes closest to what was given."""

from __future__ import annotations

import math
import re
from typing import Any, Final

_NAME: Final = re.compile(r"[A-Za-z_]\w*", re.ASCII)
# the functions of the printed form of expressions
_TAKEN: Final = ("floordiv", "mod", "min", "max")


def is_name(text: object) -> bool:
    """Whether a symbol may be called so in expressions."""
    return isinstance(text, str) and _NAME.fullmatch(text) is not None and text not in _TAKEN


def dim_faults(name: Any, low: Any, high: Any) -> list[str]:
    """Every fault of a declaration; high None means no upper bound."""
    faults = []
    if not is_name(name):
        faults.append(f"{name!r} is not a name a dim can have: letters, digits and _, no digit first, no function")
    elif re.fullmatch(r"a\d+", name):
        faults.append(f"{name!r} is a name that kernels use for index values: call the dim something else")
    bounds = {"lower": low} if high is None else {"lower": low, "upper": high}
    odd = {side: bound for side, bound in bounds.items() if not _is_whole(bound)}
    faults += [f"{name}: the {side} bound {bound!r} is not a whole number" for side, bound in odd.items()]
    if not odd and low < 0:
        faults.append(f"{name}: the lower bound {low} is negative")
    if not odd and high is not None and high < low:
        faults.append(f"{name}: the upper bound {high} is below the lower bound {low}")
    return faults


def nearest(name: Any, low: Any, high: Any) -> str:
    """The declaration to paste instead."""
    words = re.sub(r"\W+", "_", str(name), flags=re.ASCII).strip("_")
    fine = words if is_name(words) and not re.fullmatch(r"a\d+", words) else f"dim_{words}"
    ends = [max(_rounded(low), 0)] if high is None else sorted((max(_rounded(low), 0), max(_rounded(high), 0)))
    return f'tw.Dim("{fine}", {", ".join(map(str, ends))})'


def _is_whole(bound: Any) -> bool:
    return isinstance(bound, int) and not isinstance(bound, bool)


def _rounded(bound: Any) -> int:
    return int(bound) if isinstance(bound, (int, float)) and math.isfinite(bound) else 1
