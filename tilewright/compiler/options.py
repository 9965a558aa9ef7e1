"""What compile() may be told, checked once."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final

from tilewright.errors import OptionError
from tilewright.ir.passing import Pipeline

PRECISIONS: Final = ("model", "f32", "bf16", "f16")
DETERMINISM: Final = ("free", "run", "batch", "exact")
FALLBACKS: Final = ("error", "torch")
CHECKS: Final = (None, "first")


@dataclass(frozen=True)
class Options:
    """compile()'s options after checking; see tilewright.compile for what each means."""

    target: str | tuple[str, ...] = "cpu"
    precision: str = "model"
    quantize: Any = None
    passes: Pipeline | str | None = None
    determinism: str | None = None
    expect: Mapping[str, int] | None = None
    fallback: str = "error"
    check: str | None = None
    threads: int | None = None
    memory_limit: int | None = None
    cache: bool | str | Path = True
    verify_each: str | None = None
    materialise: bool = False

    def __post_init__(self) -> None:
        faults = []
        for name, allowed in (
            ("precision", PRECISIONS),
            ("fallback", FALLBACKS),
            ("check", CHECKS),
            ("verify_each", (None, "numeric")),
            ("determinism", (None, *DETERMINISM)),
        ):
            value = getattr(self, name)
            if value not in allowed:
                near = difflib.get_close_matches(str(value), [str(a) for a in allowed if a], n=1)
                hint = f" (did you mean {near[0]!r}?)" if near else ""
                faults.append(f"{name}={value!r} is not one of {', '.join(repr(a) for a in allowed)}{hint}")
        if self.threads is not None and self.threads < 1:
            faults.append(f"threads={self.threads} is not a positive number")
        if self.memory_limit is not None and self.memory_limit < 1:
            faults.append(f"memory_limit={self.memory_limit} is not a positive number of bytes")
        if self.quantize is not None:
            faults.append("quantize is not available for this target yet")
        if self.precision == "f16":
            faults.append("precision='f16' needs a machine with f16 products; the CPU classes have none")
        if faults:
            raise OptionError(faults, step="see help(tilewright.compile)")

    @staticmethod
    def of(given: Mapping[str, Any]) -> Options:
        """Options from keyword arguments; a name that is not one is an error with the nearest."""
        known = {f.name for f in fields(Options)}
        unknown = [name for name in given if name not in known]
        if unknown:
            faults = []
            for name in unknown:
                near = difflib.get_close_matches(name, known, n=1)
                faults.append(f"compile() has no option {name!r}" + (f" (did you mean {near[0]!r}?)" if near else ""))
            raise OptionError(faults, step="see help(tilewright.compile)")
        target = given.get("target", "cpu")
        return Options(**{**given, "target": target if isinstance(target, str) else tuple(target)})

    @property
    def order(self) -> str:
        """The determinism in force: batch where nothing else is asked for."""
        return self.determinism or "batch"

    def key(self) -> dict[str, Any]:
        """The options that decide code."""
        return {"precision": self.precision, "determinism": self.order, "materialise": self.materialise}
