"""One routine at one tuple of dims: where buffers lie, which variant runs, how host steps split the table."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.runtime.programs import B, T, affine, affine_program, code, executable, memory, values
from tilewright.ir import native_abi as abi
from tilewright.ir.dims import Expr
from tilewright.ir.dtypes import F32
from tilewright.runtime.program import HostCall, Ref, Routine, Slot, Step, TensorSpec, Variant
from tilewright.runtime.resolve import BaseTable, HostPart, NativePart, Resolved, choose, resolve


def resolved(main: Routine, **sizes: int) -> Resolved:
    program = affine_program(main=main)
    return resolve(program, main, BaseTable(program), code(), sizes, main=True)


def test_a_buffer_can_lie_anywhere_in_its_slot(rng: np.random.Generator) -> None:
    weights = values(rng)
    first, second = affine_program().main.steps
    place = Ref("slot", 1, B * T * 8 + 4)
    main = Routine(
        (
            replace(first, buffers=(*first.buffers[:3], place)),
            replace(second, buffers=(place, *second.buffers[1:])),
        ),
        (Slot((T,)), Slot((B * T * 12 + 4,))),
    )
    x = rng.standard_normal((3, 7), np.float32)
    run = executable(affine_program(main=main), weights)
    np.testing.assert_array_equal(run(x), affine(x, weights))
    part = run._resolved((3, 7)).parts[0]
    assert isinstance(part, NativePart)
    ((_, offset),) = {ref for ref in _refs(part) if ref[0] == BaseTable.ARENA}
    assert offset == 64 + 3 * 7 * 8 + 4, "after slot 0, which takes one cache line"


def _refs(part: NativePart) -> set[tuple[int, int]]:
    """(base, offset) of every buffer of a plan's steps."""
    found = set()
    for row in memory(part.address, (abi.PLAN_WORDS + abi.STEP_WORDS * part.plan.nsteps,), np.int64)[
        abi.PLAN_WORDS :
    ].reshape(-1, abi.STEP_WORDS):
        refs = memory(int(row[abi.STEP_REFS]), (int(row[abi.STEP_NREFS]), abi.REF_WORDS), np.int64)
        found |= {(int(base), int(offset)) for base, offset in refs}
    return found


@pytest.mark.parametrize(("n", "symbol"), [(0, "a"), (4, "a"), (5, "b"), (16, "b"), (17, "c"), (1 << 40, "c")])
def test_the_first_variant_that_fits_is_chosen(n: int, symbol: str) -> None:
    variants = (Variant("a", 4), Variant("b", 16), Variant("c"))
    step = Step("s", variants, formal_dims=("m", "n"), dims=(B, T), guard=Expr.of("n") + Expr.of("m") * 0)
    assert choose(step, (99, n)).symbol == symbol


def test_spaces_have_bases_of_their_own() -> None:
    program = affine_program()
    bases = BaseTable(program)
    refs = [Ref("slot", 0), Ref("dims", 0), Ref("input", 0), Ref("output", 0), *(Ref("weight", i) for i in range(2))]
    refs.append(Ref("packed", 0))
    value = {Expr.of(0): 0}
    assert [bases.place(ref, [0], value) for ref in refs] == [(i, 0) for i in range(7)]
    assert bases.size == 7
    assert bases.place(Ref("dims", 1), [0], value) == (BaseTable.DIMS, 8)


@pytest.mark.parametrize("hosts", [(), (0,), (1,), (2,), (0, 2), (0, 1, 2)])
def test_host_steps_split_the_table(hosts: tuple[int, ...]) -> None:
    main = affine_program().main
    spec = TensorSpec("t", (B, T), F32)
    host = Step("h", buffers=(Ref("slot", 0),), host=HostCall("f", "{}", (), (spec,)))
    steps = tuple(host if i in hosts else main.steps[0] for i in range(3))
    found = resolved(replace(main, steps=steps), batch=2, tokens=3)
    covered: list[int] = []
    for part in found.parts:
        if isinstance(part, HostPart):
            assert part.shapes == ((2, 3),)
            covered.append(part.index)
        else:
            covered += range(part.first, part.first + part.plan.nsteps)
    assert covered == [0, 1, 2]
    assert [symbol is None for symbol in found.variants] == [i in hosts for i in range(3)]
    assert len(found.parts) <= 2 * len(hosts) + 1
