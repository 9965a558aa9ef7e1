"""Whose pass it was: what goes wrong in one is told with its class, its line and whether it is Tilewright's own."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tilewright.errors import IRError, PassError, Problem, TilewrightError

if TYPE_CHECKING:
    from tilewright.ir.passing import Pass

# Characters of a foreign message: those of xDSL hold whole modules.
_QUOTED: Final = 300


@contextmanager
def blaming(p: Pass) -> Iterator[None]:
    """Around a pass and the verification of what it left: PassError, the original its cause, for malformed IR and for
    anything that is not a coded error about the program.
    """
    try:
        yield
    except IRError as fault:
        raise _at_fault(p, [replace(b, text=f"by {_named(p)}: {b.text}") for b in fault.problems]) from fault
    except TilewrightError:
        raise
    except Exception as fault:
        said = ": ".join(part for part in (type(fault).__name__, " ".join(str(fault).split())) if part)
        raise _at_fault(p, [Problem(f"{_named(p)} raised {said[:_QUOTED]}", where=_place(p, fault))]) from fault


def _named(p: Pass) -> str:
    """A pass as its pipeline calls it, and its class."""
    return f"{p.name} ({type(p).__module__}.{type(p).__qualname__})"


def _place(p: Pass, fault: BaseException) -> str | None:
    """The innermost line of the pass's own file on the way to the fault."""
    own = type(p).run.__code__.co_filename
    lines = [frame.lineno for frame in traceback.extract_tb(fault.__traceback__) if frame.filename == own]
    return f"{Path(own).name}:{lines[-1]}" if lines else None


def _at_fault(p: Pass, problems: Sequence[Problem]) -> PassError:
    ours = type(p).__module__.partition(".")[0] == "tilewright"
    step = "report this fault of Tilewright with the model" if ours else "mend the pass"
    if not p.needed:
        step += f", or compile with passes=tw.pipeline().without({p.name!r})"
    error = PassError(problems, step=step)
    error.ours = ours
    return error
