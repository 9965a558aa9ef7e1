"""Shape rules that we register with torch for operators of libraries: what an operator gives, without computing it.

torch may refuse a second rule for an operator, and a registration of ours replaces the one before: torch is given one
function for each operator, which calls the rule that counts now.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Final


class _Forwarding:
    """The function that torch holds as an operator's rule. held: as what it holds it; another since is not ours."""

    def __init__(self, rule: Callable[..., Any]) -> None:
        self.rule = rule
        self.held: Any = None

    def function(self) -> Callable[..., Any]:
        def given(*args: Any, **kwargs: Any) -> Any:
            return self.rule(*args, **kwargs)

        return given


_OURS: Final[dict[str, _Forwarding]] = {}
_LOCK: Final = threading.Lock()


def give_rule(target: Any, rule: Callable[..., Any]) -> None:
    """Makes a function the shape rule of a torch operator (an OpOverload), unless its library has given it one."""
    import torch

    with _LOCK:
        if _held(target) is None:
            made = _OURS[target.name()] = _Forwarding(rule)
            torch.library.register_fake(target.name(), made.function())
            made.held = _held(target)
        elif has_our_rule(target):
            _OURS[target.name()].rule = rule


def has_our_rule(target: Any) -> bool:
    """Whether the rule that torch asks for an operator is one that was given here."""
    ours = _OURS.get(target.name())
    return ours is not None and ours.held is _held(target)


def rule_of(target: Any) -> Any:
    """The Python function that says what an operator gives; True for a rule in other code, None where there is none."""
    import torch

    held = _held(target)
    if held is None or held is True:
        return held
    if has_our_rule(target):
        return _OURS[target.name()].rule
    function = held.func if isinstance(held, torch._library.utils.Kernel) else held
    if getattr(function, "__qualname__", "") != "_check_pystubs_once.<locals>.inner":
        return function
    # torch puts this in front of a rule, and it changes when it is first called
    cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
    return cells["func"].cell_contents


def _held(target: Any) -> Any:
    """What torch keeps as an operator's rule."""
    import torch

    defined = torch._library.custom_ops.OPDEFS.get(target.name())
    if defined is not None:
        # its entry in torch's registry is there in any case, and may say that there is no rule
        return defined._abstract_fn
    kernel = torch._library.simple_registry.singleton.find(target.name()).fake_impl.kernel
    if kernel is not None:
        return kernel
    return True if torch._C._dispatch_has_kernel_for_dispatch_key(target.name(), "Meta") else None
