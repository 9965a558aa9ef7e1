"""Holds a capture against the model itself: a proof where their operators are the same, else a trial on drawn values.

Models branch on sizes of 0 and 1 where it changes nothing (a causal mask over one token, a batch of 1 expanded to
itself), and asking for two tokens or more would take single tokens away from all of them. Models also look at sizes in
ways that no tracer records (`isinstance(n, int)`), or hears about too late (the layout of a tensor that was asked for
before). Where the operators differ and the numbers do as well, the sizes are refused; where the numbers agree on drawn
values, the sizes are admitted and a note says that this is no proof.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from enum import Enum
from typing import TYPE_CHECKING, Any, Final

from tilewright.errors import Problem, SpecialisationError, TilewrightError
from tilewright.frontend.captured import Captured
from tilewright.frontend.examples import Example, Leaf
from tilewright.frontend.exporting import Exported
from tilewright.frontend.following import Departure, departure
from tilewright.frontend.guarding import Fact, settled
from tilewright.frontend.huggingface import cacheless
from tilewright.frontend.preserving import preserved
from tilewright.frontend.quiet import quiet
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
    model: torch.nn.Module, exported: Exported, captured: Captured, notes: list[str], like_export: Callable[[], Any]
) -> tuple[Guard, ...]:
    """The guards for what neither proof nor trial confirmed; SpecialisationError where a range says it, or where the
    graph is wrong at the example's own sizes.

    notes: receives a line for each of the sizes that were tried and not proved. like_export: gives a context in which
    the model runs as it was exported.
    """
    trial = _Trial(model, exported, captured, like_export)
    trial.require_own()
    broken = [fact for fact in exported.settled.doubtful if not trial.harmless(fact)]
    if exported.layout_asked:
        broken += trial.layouts()
    notes += dict.fromkeys(trial.notes)
    return settled(broken, exported.symbols.space, exported.own, doubts=False).guards


class _Trial:
    """One model against its capture, at as many sizes as it takes. notes: what was found right by trial only."""

    def __init__(
        self, model: torch.nn.Module, exported: Exported, captured: Captured, like_export: Callable[[], Any]
    ) -> None:
        self.model, self.exported, self.captured, self.like_export = model, exported, captured, like_export
        self.notes: list[str] = []
        self._departures: dict[tuple[int, ...], Departure | None] = {}
        dims, own = exported.example.dims, exported.own
        # other dims are few, as in the example, or as small as declared: torch concludes from one dim on others
        self._few = {d.name: max(d.min, min(own[d.name], _FEW)) for d in dims}
        self._smallest = {d.name: max(d.min, 1) for d in dims}
        self._many = {d.name: max(d.min, _MANY if d.max is None else min(d.max, _MANY)) for d in dims}

    def require_own(self) -> None:
        """SpecialisationError unless the graph computes what the model does at the example's own sizes."""
        own = self.exported.own
        found = self._departure(own)
        if found is None or not found.runs:
            return
        tried = self._try(own)
        if tried is _Found.DIFFERS:
            problem = Problem(
                "the model calls it, and its captured graph has something else there: it decided by what tracing "
                "changes, such as isinstance(size, int)",
                op=found.op,
                where=found.where,
            )
            raise SpecialisationError(problem, step="decide by the sizes' values, or leave the dims out of dims")
        if tried is _Found.AGREES:
            self._note(own, list(own), found)

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
        allowed = [sizes for sizes in at if all(guard.holds(sizes) for guard in self.captured.guards)]
        # the example's own sizes can be large, and stand in where a few are not allowed
        chosen = [sizes for sizes in allowed if sizes != at[1]] or allowed
        return [sizes for i, sizes in enumerate(chosen) if sizes not in chosen[:i]]

    def _departure(self, sizes: Mapping[str, int]) -> Departure | None:
        key = tuple(sizes[dim.name] for dim in self.exported.example.dims)
        if key not in self._departures:
            exported = self.exported
            with self.like_export():
                self._departures[key] = departure(self.model, exported.traced, exported.example, sizes)
        return self._departures[key]

    def _try(self, sizes: Mapping[str, int]) -> _Found:
        return _agrees(self.model, self.exported, self.captured, sizes)

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


def _agrees(model: torch.nn.Module, exported: Exported, captured: Captured, sizes: Mapping[str, int]) -> _Found:
    """Whether the graph computes what the model does at these sizes."""
    example = exported.example.resized(sizes)
    draws = any(leaf.is_tensor for leaf in example.leaves)
    for number, scale in enumerate(_SCALES[: None if draws else 1]):
        given = _drawn(example, scale, number)
        try:
            results, after = _eager(model, given, captured.states)
            wanted = [*results, *after.values()]
        except Exception:  # noqa: BLE001 (whatever a model raises: it does not run at this size)
            return _Found.FAILS
        tensors = [leaf.value.clone() for leaf in given.leaves if leaf.is_tensor]
        states = {name: value.clone() for name, value in captured.states.items()}
        try:
            interpreter = GraphInterpreter(captured.module, weights=captured.weights, states=states)
            computed = list(interpreter.run(tensors).values())
            found = [*_leaves(captured.signature.rebuild(computed, dict(sizes))), *(states[name] for name in after)]
        except (TilewrightError, ArithmeticError, RuntimeError):
            return _Found.DIFFERS
        if len(found) != len(wanted) or not all(_same(a, b) for a, b in zip(found, wanted, strict=True)):
            return _Found.DIFFERS
        if not any(getattr(value, "numel", lambda: 0)() for value in wanted):
            return _Found.SAME
    return _Found.AGREES


def _drawn(example: Example, scale: float, seed: int) -> Example:
    """The example with fresh floats, and whole numbers drawn from its own, because they may be indices."""
    import torch

    generator = torch.Generator().manual_seed(seed)

    def drawn(leaf: Leaf) -> Leaf:
        if not leaf.is_tensor or not leaf.value.numel():
            return leaf
        if not leaf.value.is_floating_point():
            # the first draw is the example itself
            places = torch.randint(leaf.value.numel(), (leaf.value.numel(),), generator=generator)
            return leaf if seed == 0 else replace(leaf, value=leaf.value.flatten()[places].reshape(leaf.value.shape))
        value = torch.randn(leaf.value.shape, generator=generator).abs() + 0.1
        return replace(leaf, value=(value * scale).to(leaf.value.dtype))

    entries = tuple(replace(entry, leaves=tuple(drawn(leaf) for leaf in entry.leaves)) for entry in example.entries)
    return replace(example, entries=entries)


def _eager(
    model: torch.nn.Module, example: Example, states: Mapping[str, torch.Tensor]
) -> tuple[list[Any], dict[str, torch.Tensor]]:
    """The leaves of the model's outputs, and what it leaves in the buffers that are states."""
    import torch

    args, kwargs = replace(
        example,
        entries=tuple(
            replace(e, leaves=tuple(replace(x, value=x.value.clone()) if x.is_tensor else x for x in e.leaves))
            for e in example.entries
        ),
    ).call()
    with preserved(model), cacheless(model), _buffers_kept(model), torch.no_grad(), quiet():
        outputs = _leaves(model(*args, **kwargs))
        # an output can be a buffer, which is about to be put back
        results = [leaf.clone() if isinstance(leaf, torch.Tensor) else leaf for leaf in outputs]
        return results, {name: b.clone() for name, b in model.named_buffers() if name in states}


@contextmanager
def _buffers_kept(model: torch.nn.Module) -> Iterator[None]:
    """Puts back what a forward writes into buffers."""
    before = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        for buffer, value in before:
            buffer.data.copy_(value)


def _leaves(value: Any) -> list[Any]:
    from torch.utils import _pytree as pytree

    return list(pytree.tree_leaves(value))


def _same(found: Any, wanted: Any) -> bool:
    import torch

    if not isinstance(wanted, torch.Tensor):
        return bool(found == wanted)
    if not isinstance(found, torch.Tensor) or found.shape != wanted.shape or found.dtype != wanted.dtype:
        return False
    if not wanted.is_floating_point():
        return torch.equal(found, wanted)
    # rounding of one row differs with the way it is computed, a wrong branch differs by far more
    a, b = found.double(), wanted.double()
    tolerance = 32 * torch.finfo(wanted.dtype).eps
    largest = b[b.isfinite()].abs().max().item() if bool(b.isfinite().any()) else 0.0
    return bool(torch.allclose(a, b, rtol=tolerance, atol=tolerance * max(largest, 1e-30), equal_nan=True))
