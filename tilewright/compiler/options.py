"""What compile() may be told, checked once."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from types import NoneType
from typing import Any, Final, Literal

from tilewright.compiler.attention_bounds import ApproximateAttention
from tilewright.errors import OptionError
from tilewright.ir.compile_options import OBJECTIVES
from tilewright.ir.dtypes import DTYPES, from_torch_name
from tilewright.ir.passing import Pipeline
from tilewright.option_names import no_such_options
from tilewright.runtime.memory import parse_bytes

PRECISIONS: Final = ("model", "f32", "bf16")
DETERMINISM: Final = ("free", "run", "batch")
FALLBACKS: Final = ("error",)
CHECKS: Final = (None, "first")

# Values that other machines may take one day: what to say of them here, and what to write instead.
_NOT_HERE: Final = {
    ("precision", "f16"): ("needs a machine with f16 products; the CPU classes have none", "precision='bf16'"),
    ("determinism", "exact"): (
        "is not available: the CPU classes round products differently", "determinism='batch'"
    ),
    ("fallback", "torch"): (
        "is not available yet: no program runs operators outside its own kernels", "fallback='error'"
    ),
}  # fmt: skip

# name, its types, what it is, and a value that is right
_KINDS: Final[tuple[tuple[str, tuple[type, ...], str, str], ...]] = (
    ("target", (str, tuple), "a target or a list of them", "target='cpu'"),
    ("passes", (Pipeline, str, NoneType), "a pipeline or its text", "passes=None"),
    (
        "attention", (ApproximateAttention, NoneType), "a tw.ApproximateAttention",
        "attention=tw.ApproximateAttention(0.01, tw.calibrate_attention(model, calls))",
    ),
    ("expect", (Mapping, NoneType), "a mapping of pattern counts", 'expect={"attention": 6}'),
    ("threads", (int, NoneType), "a positive number", "threads=1"),
    ("memory_limit", (int, NoneType), "a positive number of bytes, or a text like '2GiB'", "memory_limit='1GiB'"),
    ("cache", (bool, str, Path), "True, False or a folder", "cache=True"),
    ("materialise", (bool,), "True or False", "materialise=False"),
)  # fmt: skip


@dataclass(frozen=True)
class Options:
    """compile()'s options after checking; see tilewright.compile for what each means."""

    target: str | tuple[str, ...] = "cpu"
    precision: str = "model"
    quantize: Any = None
    passes: Pipeline | str | None = None
    determinism: str | None = None
    objective: Literal["time", "io"] = "time"
    attention: ApproximateAttention | None = None
    expect: Mapping[str, int] | None = None
    fallback: str = "error"
    check: str | None = None
    threads: int | None = None
    memory_limit: int | None = None
    cache: bool | str | Path = True
    verify_each: str | None = None
    materialise: bool = False

    def __post_init__(self) -> None:
        faults, fixes = [], []
        for name, allowed in (
            ("precision", PRECISIONS),
            ("fallback", FALLBACKS),
            ("check", CHECKS),
            ("verify_each", (None, "numeric")),
            ("determinism", (None, *DETERMINISM)),
            ("objective", OBJECTIVES),
        ):
            value = getattr(self, name)
            if isinstance(value, str) and (name, value) in _NOT_HERE:
                why, fix = _NOT_HERE[name, value]
                faults.append(f"{name}={value!r} {why}")
                fixes.append(fix)
            elif value not in allowed:
                faults.append(f"{name}={_shown(value)} is not one of {', '.join(repr(a) for a in allowed)}")
                fixes.append(f"{name}={_meant(value, allowed)!r}")
        for name, kinds, what, fix in _KINDS:
            value = getattr(self, name)
            # True is an int to Python, but no count
            if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
                faults.append(f"{name}={_shown(value)} is not {what}")
                fixes.append(fix)
            elif isinstance(value, tuple) and not (value and all(isinstance(name, str) for name in value)):
                faults.append(f"{name}={list(value)!r} is not {what}" if value else f"{name}=[] names none")
                fixes.append(fix)
            elif isinstance(value, int) and not isinstance(value, bool) and value < 1:
                faults.append(f"{name}={value} is not {what}")
                fixes.append(fix)
        if self.quantize is not None:
            faults.append("quantize is not available for this target yet")
            fixes.append("quantize=None")
        if faults:
            raise OptionError(faults, step=f"write {', '.join(fixes)}")

    @property
    def float_bytes(self) -> int | None:
        """Bytes of a float at the precision asked for; None where each keeps its own."""
        return None if self.precision == "model" else DTYPES[self.precision].bytes

    @staticmethod
    def of(
        given: Mapping[str, Any],
        *,
        caller: str = "compile()",
        more: Iterable[str] = (),
        less: Iterable[str] = (),
        within: Mapping[str, type] | None = None,
    ) -> Options:
        """Options from keyword arguments; a name that is not one is an error with the nearest.

        caller: who takes them. more, less: names it takes besides, or does not take; told, not read here. within: see
        `no_such_options`.
        """
        known = {f.name for f in fields(Options)}
        unknown = [name for name in given if name not in known]
        if unknown:
            # what no target has is not offered
            raise no_such_options(caller, unknown, (known | set(more)) - {"quantize", *less}, within)
        target = given.get("target", "cpu")
        limit = given.get("memory_limit")
        return Options(
            **{
                **given,
                "target": tuple(target) if isinstance(target, list) else target,
                "memory_limit": parse_bytes(limit) if isinstance(limit, str) else limit,
            }
        )


def _meant(value: Any, allowed: Sequence[str | None]) -> str | None:
    """What to write instead of a value: the one that is written alike, or a dtype's name here. Of what is off by
    default any other value asks for the thing itself: for the most of it, and not for None.
    """
    dtype = from_torch_name(f"torch.{str(value).removeprefix('torch.')}")
    named = [text for text in allowed if text]
    near = difflib.get_close_matches(str(value if dtype is None else dtype), named, n=1)
    if near:
        return near[0]
    return named[-1] if None in allowed and value else allowed[0]


def _shown(value: Any) -> str:
    """A value's text where it is short, else what kind of thing it is: a tensor prints a page."""
    text = repr(value)
    return text if len(text) <= 60 and "\n" not in text else f"a {type(value).__name__}"
