"""Holds a capture against the model itself: a proof where their operators are the same, else a trial on drawn values.

Models branch on sizes of 0 and 1 where it changes nothing (a causal mask over one token, a batch of 1 expanded to
itself), and asking for two tokens or more would take single tokens away from all of them. Models also look at sizes in
ways that no tracer records (`isinstance(n, int)`), or hears about too late (the layout of a tensor that was asked for
before). Where the operators differ and the numbers do as well, the sizes are refused; where the numbers agree on drawn
values, the sizes are admitted and a note says that this is no proof.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from enum import Enum
from typing import TYPE_CHECKING, Any, Final

from xdsl.dialects.builtin import ModuleOp

from tilewright.errors import CaptureError, Problem, SpecialisationError, TilewrightError
from tilewright.frontend.captured import Captured, Proof
from tilewright.frontend.concrete import Noticed
from tilewright.frontend.eager import drawn, eager, leaves, same
from tilewright.frontend.exporting import Exported, export
from tilewright.frontend.following import Departure, departure
from tilewright.frontend.guarding import Fact, settled
from tilewright.ir.dims import Expr
from tilewright.ir.graph_interpreter import GraphInterpreter
from tilewright.ir.guards import Guard

if TYPE_CHECKING:
    import torch

# Draws of the inputs for each combination of sizes: single elements of either sign, large and small.
_SCALES: Final = (1.0, -1.0, 8.0, 1e4)
# Sizes that are neither 0 nor 1: one that costs little to run, and the most that another dim is tried with.
_FEW: Final = 3
_MANY: Final = 33
# So many combinations of sizes are tried to tell which ones a fact refuses.
_TRIED: Final = 16_384


def tried(
    model: torch.nn.Module,
    exported: Exported,
    captured: Captured,
    known: tuple[Guard, ...],
    graph: Callable[[], ModuleOp],
    like_export: Callable[[], Any],
) -> Proof:
    """The guards for what neither proof nor trial confirmed; SpecialisationError where a range says it, or where the
    graph is wrong at the example's own sizes; CaptureError where it is another one in an eager run or a second call.
    And whether all of it was proved, and nothing decided by numbers that a run gave; with a note for each of the sizes
    that were tried and not proved.

    captured: its module may have been consumed. known: its guards. graph: gives it as it was captured. like_export:
    gives a context in which the model runs as it was exported.
    """
    trial = _Trial(model, exported, captured, known, graph, like_export)
    trial.require_own()
    trial.require_unasked()
    trial.require_unchanging()
    broken = [fact for fact in exported.settled.doubtful if not trial.harmless(fact)]
    if exported.layout_asked:
        broken += trial.layouts()
    found = settled(broken, exported.symbols.space, exported.own, doubts=False)
    return Proof(found.guards, tuple(dict.fromkeys(trial.notes)), trial.proved)


class _Trial:
    """One model against its capture, at as many sizes as it takes. notes: what was found right by trial only.

    proved: whether no run of the model had a say.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        exported: Exported,
        captured: Captured,
        known: tuple[Guard, ...],
        graph: Callable[[], ModuleOp],
        like_export: Callable[[], Any],
    ) -> None:
        self.model, self.exported, self.captured, self.like_export = model, exported, captured, like_export
        self.known, self.graph = known, graph
        self.notes: list[str] = []
        self.proved = True
        self.noticed = Noticed()
        self._departures: dict[tuple[int, ...], Departure | None] = {}
        dims, own = exported.example.dims, exported.own
        # other dims are few, as in the example, or as small as declared: torch concludes from one dim on others
        self._few = {d.name: max(d.min, min(own[d.name], _FEW)) for d in dims}
        self._smallest = {d.name: max(d.min, 1) for d in dims}
        self._many = {d.name: max(d.min, _MANY if d.max is None else min(d.max, _MANY)) for d in dims}

    def require_own(self) -> None:
        """SpecialisationError unless the graph computes what the model does at the example's own sizes; CaptureError
        where it is another one without any dims, too.
        """
        own = self.exported.own
        found = self._departure(own)
        if found is not None and not found.runs:
            self.proved = False
        if found is None or not found.runs:
            return
        tried = self._try(own)
        if tried is _Found.DIFFERS:
            text = "the model calls it, and its captured graph has something else there: it decided by what "
            if self.exported.example.dims and not self._departs_without_dims():
                text += "tracing changes, such as isinstance(size, int)"
                raise SpecialisationError(
                    Problem(text, op=found.op, where=found.where),
                    step="decide by the sizes' values, or leave the dims out of dims",
                )
            text += "lies outside of the module and its arguments, and is another thing while it is captured or for "
            text += "another layer: a global that calls change, or a switch that torch sets meanwhile"
            raise CaptureError(
                Problem(text, op=found.op, where=found.where),
                step="keep what it decides by in an attribute that __init__ sets and forward leaves as it is",
            )
        if tried is _Found.AGREES:
            self._note(own, list(own), found)
        if tried is _Found.FAILS:
            self.notes.append("the example: neither proved nor tried, because the model fails on drawn values")

    def _departs_without_dims(self) -> bool:
        """Whether the model's graph for the example's sizes alone is another one, too; dims are not the reason then."""
        sized = self.exported.example.resized(self.exported.own)
        entries = [replace(e, leaves=tuple(replace(leaf, axes=()) for leaf in e.leaves)) for e in sized.entries]
        fixed = replace(sized, entries=tuple(entries), dims=(), given={})
        try:
            with self.like_export():
                found = departure(self.model, export(self.model, fixed).traced, fixed, {})
        except TilewrightError:
            # what cannot be captured for fixed sizes tells nothing
            return False
        return found is not None and found.runs

    def require_unasked(self) -> None:
        """CaptureError where a model that asks whether it is being exported computes something else when it is not."""
        if not self.noticed.asked:
            return
        own, exported = self.exported.own, self.exported
        with self.like_export():
            found = departure(self.model, exported.traced, exported.example, own, exporting=False, noticed=self.noticed)
        if found is None:
            return
        asks = "the model asks torch.compiler.is_compiling() or is_exporting()"
        where = found.where or self.noticed.asked[0]
        tried = self._try(own)
        if tried is _Found.DIFFERS:
            problem = Problem(f"{asks}, and computes something else where neither is so", where=where)
            raise CaptureError(problem, step="let both ways compute the same, or decide by an argument of the model")
        if tried is _Found.AGREES:
            self.notes.append(f"{asks}, and calls other operators: right on drawn values, not proved ({where})")
        if tried is _Found.FAILS:
            self.notes.append(f"{asks}, and fails where neither is so: not proved ({where})")

    def require_unchanging(self) -> None:
        """CaptureError where a second call computes something else than the first, because of changed attributes."""
        if not self.noticed.changed:
            return
        self.proved = False
        example = drawn(self.exported.example.resized(self.exported.own), 1.0, 0)
        names = ", ".join(self.noticed.changed)
        try:
            (first, after), (second, later) = (
                eager(self.model, example, self.captured.states, calls=calls) for calls in (1, 2)
            )
        except Exception as fault:  # noqa: BLE001 (whatever a model raises: a second call cannot be tried)
            self.notes.append(
                f"{names}: changed by each call of the model, left alone by the program; not tried ({fault})"
            )
            return
        once, twice = [*first, *after.values()], [*second, *later.values()]
        if len(once) != len(twice) or not all(same(a, b) for a, b in zip(twice, once, strict=True)):
            raise CaptureError(
                Problem(f"a second call computes something else than the first: each call changes {names}"),
                step="keep what changes between calls in a buffer, register_buffer(name, tensor), and write to it",
            )
        self.notes.append(
            f"{names}: changed by each call of the model, left alone by the program; calls compute the same"
        )

    def harmless(self, fact: Fact) -> bool:
        """Whether the graph is right at the sizes that break a fact; not where no call of these could be tried."""
        names = [dim.name for dim in fact.dims]
        for refused in fact.refused() or []:
            small = dict(zip(names, refused, strict=True))
            chosen = self._chosen(small)
            if not chosen:
                return False
            departures = [found for sizes in chosen if (found := self._departure(sizes)) is not None]
            if not departures:
                continue
            tried = [self._try(sizes) for sizes in chosen]
            if not all(found in (_Found.AGREES, _Found.SAME) for found in tried):
                return False
            if _Found.AGREES in tried:
                self._note(small, names, replace(departures[0], where=fact.where or departures[0].where))
        return True

    def layouts(self) -> list[Fact]:
        """What must not be for the graph to be right: a model that asks for layouts hears of other ones at 0 and 1."""
        small = [{d.name: n} for d in self.exported.example.dims for n in (0, 1) if d.min <= n]
        if len(small) > 1:
            small.append({name: size for at in reversed(small) for name, size in at.items()})
            small.append({name: size for at in small for name, size in at.items()})
        broken = []
        for at in small:
            for sizes in self._chosen(at):
                found = self._departure(sizes)
                if found is None or not found.runs:
                    continue
                tried = self._try(sizes)
                if tried is _Found.DIFFERS:
                    broken.append(_not_at(self.exported, at, found.where))
                    break
                if tried is _Found.AGREES:
                    self._note(at, list(at), found)
        return broken

    def _chosen(self, small: Mapping[str, int]) -> list[dict[str, int]]:
        """The sizes at which some dims are tried with given ones, as far as the guards allow."""
        at = [{**others, **small} for others in (self._few, self.exported.own, self._smallest, self._many)]
        allowed = [sizes for sizes in at if all(guard.holds(sizes) for guard in self.known)]
        # the example's own sizes can be large, and stand in where a few are not allowed
        chosen = [sizes for sizes in allowed if sizes != at[1]] or allowed
        return [sizes for i, sizes in enumerate(chosen) if sizes not in chosen[:i]]

    def _departure(self, sizes: Mapping[str, int]) -> Departure | None:
        key = tuple(sizes[dim.name] for dim in self.exported.example.dims)
        if key not in self._departures:
            exported = self.exported
            with self.like_export():
                self._departures[key] = departure(
                    self.model,
                    exported.traced,
                    exported.example,
                    sizes,
                    noticed=self.noticed,
                    # the example's sizes come first, with every layer: whatever stands between layers is known then
                    every_layer=not self._departures,
                )
        return self._departures[key]

    def _try(self, sizes: Mapping[str, int]) -> _Found:
        self.proved = False
        return _agrees(self.model, self.exported, self.captured, self.graph(), sizes)

    def _note(self, sizes: Mapping[str, int], names: list[str], found: Departure) -> None:
        shown = ", ".join(f"{name} = {sizes[name]}" for name in names) or "the example"
        place = f" ({found.where})" if found.where else ""
        self.notes.append(f"{shown}: right on drawn values, not proved; the model takes another branch there{place}")


def _not_at(exported: Exported, sizes: Mapping[str, int], where: str | None) -> Fact:
    """The fact that the dims do not have these sizes, all at once."""
    space = exported.symbols.space
    guards = [Guard(Expr.of(name), "!=", Expr.of(size), where) for name, size in sizes.items()]
    if len(guards) == 1:
        return Fact.of(guards[0], space)
    dims = tuple(space.dims[name] for name in sorted(sizes))
    text = " or ".join(map(str, guards))
    return Fact(text, dims, lambda at: any(guard.holds(at) for guard in guards), _TRIED, None, where)


class _Found(Enum):
    """What a trial found: the model fails at the sizes, its results are others, the same on drawn values, or the same
    for all values, because none of them has an element.
    """

    FAILS = "fails"
    DIFFERS = "differs"
    AGREES = "agrees"
    SAME = "same"


def _agrees(
    model: torch.nn.Module, exported: Exported, captured: Captured, graph: ModuleOp, sizes: Mapping[str, int]
) -> _Found:
    """Whether the graph computes what the model does at these sizes."""
    example = exported.example.resized(sizes)
    draws = any(leaf.is_tensor for leaf in example.leaves)
    for number, scale in enumerate(_SCALES[: None if draws else 1]):
        given = drawn(example, scale, number)
        try:
            results, after = eager(model, given, captured.states)
            wanted = [*results, *after.values()]
        except Exception:  # noqa: BLE001 (whatever a model raises: it does not run at this size)
            return _Found.FAILS
        tensors = [leaf.value.clone() for leaf in given.leaves if leaf.is_tensor]
        states = {name: value.clone() for name, value in captured.states.items()}
        try:
            interpreter = GraphInterpreter(graph, weights=captured.weights, states=states)
            computed = list(interpreter.run(tensors).values())
            found = [*leaves(captured.signature.rebuild(computed, dict(sizes))), *(states[name] for name in after)]
        except (TilewrightError, ArithmeticError, RuntimeError):
            return _Found.DIFFERS
        if len(found) != len(wanted) or not all(same(a, b) for a, b in zip(found, wanted, strict=True)):
            return _Found.DIFFERS
        if not any(getattr(value, "numel", lambda: 0)() for value in wanted):
            return _Found.SAME
    return _Found.AGREES
