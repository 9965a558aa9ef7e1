"""What a pass is, and the context it works in: bytes to weigh by, refusals to record, applications to count.

A pass is a frozen dataclass; its fields are its options and its text form: `fuse{max-ops=32 epilogues=true}`.
"""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, Self, TypeAlias

from xdsl.dialects.builtin import ModuleOp
from xdsl.ir import Operation

from tilewright.errors import PassOptionError, PassOrderError
from tilewright.ir.choices import Candidate, Choice, best
from tilewright.ir.compile_options import CompileOptions
from tilewright.ir.dims import DimSpace, Expr, ExprLike
from tilewright.ir.machine import Machine
from tilewright.ir.operation import TwOperation
from tilewright.ir.pass_faults import blaming
from tilewright.ir.pipeline_faults import pipeline_fault
from tilewright.ir.types import ShapedType
from tilewright.ir.verifier import Checked
from tilewright.ir.verifier import verify as verify_module


@dataclass(frozen=True, slots=True)
class Applied:
    """One rewrite that happened: the unit that the report counts, bisect searches and grounding checks."""

    pass_name: str
    op: str
    what: str
    saves: Expr
    where: str | None


@dataclass(frozen=True, slots=True)
class Refused:
    """One rewrite that was considered and not done, with the reason."""

    pass_name: str
    op: str
    reason: str
    where: str | None


@dataclass(frozen=True, slots=True)
class Noted:
    """One rewrite of which the user must know something; `text` completes "3 attentions: ..."."""

    pass_name: str
    what: str
    text: str


WeightReader: TypeAlias = Callable[[str], Any]
"""Gives a weight's values by name, for passes that declare `reads_weights`."""


@dataclass
class Context:
    """What a pass may ask and must tell.

    options: of the compilation. limit: applications allowed before `apply` starts to refuse, for bisecting a wrong
    rewrite (None: no limit).
    """

    machine: Machine
    dims: DimSpace
    options: CompileOptions = field(default_factory=CompileOptions)
    read_weight: WeightReader | None = None
    limit: int | None = None
    applied: list[Applied] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)
    noted: list[Noted] = field(default_factory=list)
    chosen: list[Choice] = field(default_factory=list)
    weights_read: list[str] = field(default_factory=list)
    current: str = ""

    def bytes(self, *values: Any) -> Expr:
        """Storage bytes of values (SSA values or types) as an expression of the dims."""
        total = Expr.of(0)
        for value in values:
            shaped = value if isinstance(value, ShapedType) else value.type
            total = total + shaped.bytes
        return total

    def at_most(self, expr: ExprLike) -> int | None:
        """The largest value an expression takes within the declared bounds; None when unbounded."""
        return self.dims.at_most(expr)

    def weight(self, name: str) -> Any:
        """A weight's values; the read enters the key. Only for passes with `reads_weights`."""
        if self.read_weight is None:
            raise PassOptionError(
                f"{self.current} reads weight {name!r} but does not declare reads_weights",
                step="set reads_weights: ClassVar[bool] = True on the pass",
            )
        self.weights_read.append(name)
        return self.read_weight(name)

    def refuse(self, op: Operation, reason: str) -> None:
        """Records a rewrite that was considered and not done."""
        self.refused.append(Refused(self.current, op.name, reason, _where(op)))

    def note(self, what: str, text: str) -> None:
        """Records what the user must know of one rewrite; equal texts become one line of the report, counted."""
        self.noted.append(Noted(self.current, what, text))

    def choose(
        self,
        op: Operation,
        candidates: Sequence[Candidate],
        *,
        sizes: Sequence[Mapping[str, int]],
        objective: str | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> Candidate | None:
        """The best candidate for an op by the objective, unless stated the compilation's; None where all are refused.

        All of them go to the report with their figures, as do `facts`, which are the op's own. sizes: those that the
        candidates were judged at, the largest first.
        """
        objective = objective or self.options.objective
        found, why = best(candidates, self.machine, objective)
        self.chosen.append(
            Choice(
                self.current, op.name, _where(op), objective, tuple(sizes), tuple(candidates), found, why,
                dict(facts or {}),
            )
        )  # fmt: skip
        return None if found is None else candidates[found]

    def apply(self, ops: Sequence[Operation], what: str, *, saves: ExprLike = 0) -> bool:
        """Records one rewrite of `ops` and says whether to do it: False once a bisect's limit is reached.

        saves: bytes of traffic the rewrite avoids.
        """
        if self.limit is not None and len(self.applied) >= self.limit:
            return False
        self.applied.append(Applied(self.current, ops[0].name, what, Expr.of(saves), _where(ops[0])))
        return True


def _where(op: Operation) -> str | None:
    return op.loc if isinstance(op, TwOperation) else None


@dataclass(frozen=True)
class Pass:
    """A module -> module step. Subclasses are frozen dataclasses with a kebab-case `name` and a `run`.

    The module is changed in place. A pass leaves it valid, and equal in meaning to what it was.
    """

    name: ClassVar[str] = ""
    reads_weights: ClassVar[bool] = False
    # whether some models cannot be compiled without it, so that leaving it out is no advice
    needed: ClassVar[bool] = False
    # names of passes that must have run, or "one|another" where one of several will do
    requires: ClassVar[tuple[str, ...]] = ()
    # the least value of options that are numbers
    least: ClassVar[Mapping[str, int]] = {}

    def __post_init__(self) -> None:
        small = {name: bound for name, bound in self.least.items() if getattr(self, name) < bound}
        if small:
            shown = {name.replace("_", "-"): (getattr(self, name), bound) for name, bound in small.items()}
            raise PassOptionError(
                [f"{self.name}: {name}={value} is below {bound}" for name, (value, bound) in shown.items()],
                step="write " + " ".join(f"{name}={bound}" for name, (_, bound) in shown.items()) + " or more",
            )

    def run(self, module: ModuleOp, ctx: Context) -> None:
        """Rewrites the module."""
        raise PassOptionError(f"{type(self).__name__} defines no run()", step="define run(self, module, ctx)")

    def __str__(self) -> str:
        """The text form; options that have their default are left out."""
        given = []
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            if value != f.default:
                given.append(f"{f.name.replace('_', '-')}={option_text(value)}")
        return self.name + (f"{{{' '.join(given)}}}" if given else "")

    @classmethod
    def from_options(cls, options: Mapping[str, str]) -> Self:
        """Builds the pass from option text, by the fields' declared types."""
        hints = typing.get_type_hints(cls)
        fields = {f.name.replace("_", "-"): f.name for f in dataclasses.fields(cls)}
        unknown = [name for name in options if name not in fields]
        if unknown:
            raise PassOptionError(
                [f"{cls.name} has no option {name!r}" for name in unknown],
                step=f"{cls.name} takes: {', '.join(fields) or 'no options'}",
            )
        return cls(**{fields[n]: _option_value(cls.name, n, text, hints[fields[n]]) for n, text in options.items()})


def option_text(value: Any) -> str:
    """A pass option's value as pipelines write it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _option_value(pass_name: str, option: str, text: str, hint: Any) -> Any:
    if isinstance(hint, types.UnionType):
        hint = next(t for t in typing.get_args(hint) if t is not type(None))
    try:
        if hint is bool:
            return {"true": True, "false": False}[text]
        if typing.get_origin(hint) is tuple:
            kind = typing.get_args(hint)[0]
            return tuple(kind(part) for part in text.split(",") if part)
        return hint(text)
    except (KeyError, ValueError):
        wanted = getattr(hint, "__name__", str(hint))
        raise PassOptionError(
            f"{pass_name}: {option}={text} is not {a(wanted)}", step=f"write {option}=<{wanted}>"
        ) from None


def a(noun: str) -> str:
    """A noun with its article."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


_PASS = re.compile(r"\s*([a-z][a-z0-9-]*)\s*(?:\{([^{}]*)\})?\s*(,|$)")


@dataclass(frozen=True, slots=True)
class Pipeline:
    """An ordered list of passes; prints and parses back, and edits by name. PassOptionError for what is no pass."""

    passes: tuple[Pass, ...]

    def __post_init__(self) -> None:
        wrong = [p for p in self.passes if not isinstance(p, Pass)]
        if not wrong:
            return
        named = [f"{p.__qualname__}()" for p in wrong if isinstance(p, type) and issubclass(p, Pass)]
        raise PassOptionError(
            [f"{p!r} is no pass" for p in wrong],
            step=f"give an instance: {', '.join(named)}"
            if named
            else "give instances of subclasses of tilewright.ir.passing.Pass",
        )

    def __str__(self) -> str:
        return ",".join(map(str, self.passes))

    @staticmethod
    def parse(text: str, known: Mapping[str, Callable[[], type[Pass]]]) -> Pipeline:
        """Reads `a,b{x=1 y=true}` with passes looked up in `known` (name -> class, imported on use)."""
        position, passes = 0, []
        while position < len(text):
            match = _PASS.match(text, position)
            if match is None:
                raise pipeline_fault(text, position, known)
            name, options, _ = match.groups()
            if name not in known:
                import difflib

                near = difflib.get_close_matches(name, known, n=1)
                raise PassOptionError(
                    f"no pass is called {name!r}",
                    step=f"did you mean {near[0]!r}?" if near else "see `tilewright passes`",
                )
            pairs = {}
            for part in (options or "").split():
                option, _, value = part.partition("=")
                pairs[option] = value or "true"
            passes.append(known[name]().from_options(pairs))
            position = match.end()
        return Pipeline(tuple(passes))

    def after(self, name: str, *added: Pass) -> Pipeline:
        """The pipeline with passes put right after the named one."""
        at = self._index(name) + 1
        return Pipeline((*self.passes[:at], *added, *self.passes[at:]))

    def before(self, name: str, *added: Pass) -> Pipeline:
        """The pipeline with passes put right before the named one."""
        at = self._index(name)
        return Pipeline((*self.passes[:at], *added, *self.passes[at:]))

    def without(self, *names: str) -> Pipeline:
        """The pipeline without the named passes."""
        for name in names:
            self._index(name)
        return Pipeline(tuple(p for p in self.passes if p.name not in names))

    def replace(self, name: str, other: Pass) -> Pipeline:
        """The pipeline with the named pass replaced."""
        at = self._index(name)
        return Pipeline((*self.passes[:at], other, *self.passes[at + 1 :]))

    def check_order(self, *ends: str) -> None:
        """PassOrderError unless every pass comes after those it requires, and the passes named in `ends` are there."""
        faults, done = [], set[str]()
        for p in self.passes:
            for required in p.requires:
                if not done & set(required.split("|")):
                    faults.append(f"{p.name} comes before {required.replace('|', ' or ')}, which it requires")
            done.add(p.name)
        faults += [f"the pipeline has no {name}" for name in ends if name not in done]
        if faults:
            raise PassOrderError(faults, step='edit the default pipeline: tw.pipeline().after("recognize", MyPass())')

    def _index(self, name: str) -> int:
        for i, p in enumerate(self.passes):
            if p.name == name:
                return i
        raise PassOptionError(
            f"the pipeline has no pass {name!r}", step=f"it has: {', '.join(p.name for p in self.passes)}"
        )


class Instrument(Protocol):
    """Watches a pipeline run: timing, printing, verifying. One instance a compilation; nothing is patched globally."""

    def around(self, p: Pass, module: ModuleOp, ctx: Context) -> AbstractContextManager[None]: ...


def run_pipeline(
    pipeline: Pipeline, module: ModuleOp, ctx: Context, *, instruments: Sequence[Instrument] = (), verify: bool = True
) -> None:
    """Runs the passes in order on the module, in place, verifying the IR after each. PassError names a pass that
    fails otherwise than by a coded error, or leaves the module malformed.

    Between passes, ops that a pass left alone are not checked again; after the last, all are.
    """
    from contextlib import ExitStack

    checked: Checked = {}
    reader = ctx.read_weight

    for left, p in zip(reversed(range(len(pipeline.passes))), pipeline.passes, strict=True):
        ctx.current, ctx.read_weight = p.name, reader if p.reads_weights else None
        with ExitStack() as stack:
            for instrument in instruments:
                stack.enter_context(instrument.around(p, module, ctx))
            with blaming(p):
                p.run(module, ctx)
                if verify:
                    verify_module(module, checked if left else None)
    ctx.current, ctx.read_weight = "", reader
