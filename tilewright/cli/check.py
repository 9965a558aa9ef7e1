"""`tilewright check MODEL`: the compiled program beside the model itself, and where they part if they do."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tilewright.cli.options import (
    Cache,
    Determinism,
    Dims,
    ModelArgument,
    Passes,
    Precision,
    Target,
    Threads,
    compile_given,
    compile_options,
)
from tilewright.errors import ModelInputError, NumericMismatchError

if TYPE_CHECKING:
    import numpy as np

    from tilewright.cli.models import Model
    from tilewright.compiler.compiled import Compiled
    from tilewright.ir.dims import Dim

Count = Annotated[
    int,
    typer.Option("-n", "--count", min=1, help="How many tuples of sizes to draw: the least, the largest, then others."),
]
Seed = Annotated[int, typer.Option(min=0, help="Of the sizes and the inputs.")]

# Dims without an upper bound, or with a far one, are drawn up to here: the model itself runs at every size drawn.
_LARGEST = 128
# At the upper ends of the ranges, the product of all sizes is at most this.
_MOST = 4096


def check(
    model: ModelArgument,
    count: Count = 6,
    seed: Seed = 0,
    dims: Dims = None,
    target: Target = "cpu",
    precision: Precision = "model",
    passes: Passes = None,
    determinism: Determinism = None,
    threads: Threads = None,
    cache: Cache = None,
) -> None:
    """Compares with the model itself; names the first op that differs."""
    from tilewright.cli.models import open_model
    from tilewright.cli.progress import say
    from tilewright.cli.tables import show

    options = compile_options(
        target=target,
        precision=precision,
        passes=passes,
        determinism=determinism,
        threads=threads,
        cache=cache,
    )
    given = loaded(open_model(model))
    compiled = compile_given(given, dims, options)
    cases = list(compare(given, compiled, precision, count, seed))
    rows = [(_sizes(c.sizes), f"{c.worst:.3g}", f"{c.bound:.3g}", "ok" if c.right else "DIFFERS") for c in cases]
    show(("sizes", "largest difference", "rounding explains", ""), rows, numbers=(1, 2))
    wrong = next((c for c in cases if not c.right), None)
    if wrong is None:
        print(f"{len(cases)} of {len(cases)} agree")
        return
    say("They differ. Looking for the first op that does: this compiles the model again, twice.")
    found = locate(given, dims, options, wrong)
    raise NumericMismatchError(
        f"at {_sizes(wrong.sizes)}, output {wrong.output} differs by {wrong.worst:.3g}, "
        f"rounding explains {wrong.bound:.3g}; "
        + (f"first in {found}" if found else "no op differs by itself: rounding adds up along the model"),
        step="report it with the model" if found else "compare at precision f32, or judge by the model's own measure",
    )


class Case:
    """One comparison: sizes, inputs and expected results, and the output that was worst against its bound."""

    def __init__(self, sizes: Mapping[str, int], tensors: Sequence[Any], expected: Sequence[Any]) -> None:
        self.sizes, self.tensors, self.expected = sizes, tensors, expected
        self.worst, self.bound, self.output, self.right = 0.0, 0.0, "", True

    def hold(self, name: str, wanted: Any, got: Any, precision: str) -> None:
        """Compares one output and keeps it if it is worse than those before."""
        from tilewright.compiler.checking import distance, tolerance

        worst, bound = distance(wanted, got), tolerance(wanted, precision)
        excess = worst / bound if bound else (math.inf if worst else 0.0)
        kept = self.worst / self.bound if self.bound else -1.0
        if self.right and (worst > bound or excess > kept):
            self.worst, self.bound, self.output, self.right = worst, bound, name, worst <= bound


def loaded(model: Model) -> Model:
    """The model as something that can be called: a .pt2 file's program is read."""
    from dataclasses import replace

    from tilewright.frontend.capturing import load_program

    return replace(model, model=load_program(model.model)) if hasattr(model.model, "suffix") else model


def compare(model: Model, compiled: Compiled, precision: str, count: int, seed: int) -> Iterator[Case]:
    """Runs both at the least sizes and at drawn ones."""
    import numpy as np
    import torch

    from tilewright.cli.inputs import as_torch, call_of, draw, index_limits, named_outputs
    from tilewright.ir.module import parse_module

    program = compiled.code.program
    limits = index_limits(parse_module(compiled.code.texts["captured"]))
    rng = np.random.default_rng(seed)
    # the sizes drawn are within the range that the program was exported for
    eager = model.model if isinstance(model.model, torch.nn.Module) else model.model.module(check_guards=False)
    for sizes in draw_sizes(program.dims, count, rng):
        tensors = [as_torch(leaf) for leaf in draw(program, sizes, limits, rng)]
        with torch.inference_mode(), _unchanged(eager, [state.spec.name for state in program.states]):
            args, kwargs = call_of(program.signature, [t.clone() for t in tensors])
            wanted = named_outputs(program.signature, _called(eager, args, kwargs, sizes))
        compiled.reset()
        args, kwargs = call_of(program.signature, [t.clone() for t in tensors])
        got = named_outputs(program.signature, compiled(*args, **kwargs))
        case = Case(sizes, tensors, [v for v in wanted.values() if isinstance(v, torch.Tensor)])
        for name, value in wanted.items():
            if isinstance(value, torch.Tensor):
                case.hold(name, value, got[name], precision)
        yield case


def locate(model: Model, dims: Sequence[str] | None, options: Mapping[str, Any], case: Case) -> object:
    """The first difference on the way down, by compiler/divergence.py."""
    from tilewright.cli.dims_text import parse_dims
    from tilewright.compiler.checking import tolerance
    from tilewright.compiler.divergence import Case as Repeatable
    from tilewright.compiler.divergence import first_difference
    from tilewright.compiler.options import Options
    from tilewright.compiler.target import Target as Resolved
    from tilewright.frontend.capturing import capture

    chosen = Options.of(options)
    target = Resolved.of(chosen)
    declared = parse_dims(dims or []) or model.dims
    return first_difference(
        Repeatable(
            capture=lambda: capture(model.model, model.args, dict(model.kwargs), declared, fallback=chosen.fallback),
            tensors=case.tensors,
            expected=case.expected,
            target=target,
            options=target.told(chosen),
        ),
        lambda wanted: tolerance(wanted, chosen.precision),
    )


def draw_sizes(dims: Sequence[Dim], count: int, rng: np.random.Generator) -> Iterator[dict[str, int]]:
    """The least size of every dim, the largest, then others whose logarithms are spread evenly."""
    declared = [d for d in dims if d.kind != "runtime"]
    seen: list[dict[str, int]] = []
    drawn = ({d.name: _drawn(d, rng) for d in declared} for _ in range(4 * count))
    for sizes in chain([{d.name: d.min for d in declared}], _upper_ends(declared), drawn):
        # a range may hold fewer tuples than were asked for
        if sizes not in seen and len(seen) < count:
            seen.append(sizes)
            yield sizes


def _upper_ends(dims: Sequence[Dim]) -> Iterator[dict[str, int]]:
    """The largest size of every dim; where the model would run too long at those, of one dim after the other."""
    least = {d.name: d.min for d in dims}
    tops = {d.name: max(d.min, min(_LARGEST if d.max is None else d.max, _MOST)) for d in dims}
    if math.prod(tops.values()) <= _MOST:
        yield tops
    else:
        yield from ({**least, name: top} for name, top in tops.items())


def _drawn(dim: Dim, rng: np.random.Generator) -> int:
    high = max(dim.min, _LARGEST if dim.max is None else min(dim.max, _LARGEST))
    low = max(dim.min, 1)
    return round(math.exp(rng.uniform(math.log(low), math.log(max(low, high)))))


def _called(eager: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], sizes: Mapping[str, int]) -> Any:
    """The model's own output; what it raises is no fault of the compiled one."""
    try:
        return eager(*args, **kwargs)
    except Exception as fault:
        raise ModelInputError(
            f"the model itself fails at {_sizes(sizes)}: {type(fault).__name__}: {fault}",
            step="declare dims whose whole range the model takes",
        ) from fault


@contextmanager
def _unchanged(model: Any, states: Sequence[str]) -> Iterator[None]:
    """The model's mutated buffers get their values back, so that every call starts from the same."""
    buffers = dict(model.named_buffers())
    saved = {name: buffers[name].clone() for name in states if name in buffers}
    try:
        yield
    finally:
        for name, value in saved.items():
            buffers[name].copy_(value)


def _sizes(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{name}={size}" for name, size in sizes.items()) or "the only sizes"
