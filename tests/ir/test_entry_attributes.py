"""Guards and reads are part of a module: printed, parsed, verified, kept by passes, heeded where sizes are drawn."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tilewright.errors import InterpreterError, IRError, ParseError
from tilewright.ir.dims import Expr, floordiv, mod
from tilewright.ir.entry_attributes import Read, guards, reads, require, set_reads
from tilewright.ir.equivalence import size_list
from tilewright.ir.guards import Guard
from tilewright.ir.module import parse_module, print_module
from tilewright.testing import ground, transform

TEXT = """builtin.module attributes {{tw.dims = #tw.dim_space<["a: 1..64", "b: 1..64", "n: 0..9 read"]>{more}}} {{
  graph.func() {{sym_name = "main", arg_names = ["x", "n"], result_names = ["y"]}} {{
  ^bb0(%x: !graph.tensor<["a", "b"], f32>, %n: !graph.tensor<[], i64>):
    %t = graph.map(args=[%x]) {{fn = "exp"}} : !graph.tensor<["a", "b"], f32>
    %y = graph.map(args=[%t]) {{fn = "neg"}} : !graph.tensor<["a", "b"], f32>
    graph.return(values=[%y])
  }}
}}
"""
A, B, N = Expr.of("a"), Expr.of("b"), Expr.of("n")

expressions = st.sampled_from([A, B, A * B, A + N * 3, mod(A, 4), floordiv(A * B, 7) - 2, Expr.of(-5), Expr.of(0)])
relations = st.builds(
    Guard,
    expressions,
    st.sampled_from(["==", "!=", "<=", "<", ">=", ">"]),
    expressions,
    st.none() | st.sampled_from(["net.py:3", 'a "b" at\\c.py:1', "größe.py:7", ""]),
)


@given(st.lists(relations, max_size=4, unique=True), st.booleans())
def test_a_module_reads_back_what_its_calls_are_held_to(held: list[Guard], read: bool) -> None:
    module = parse_module(TEXT.format(more=""))
    assert guards(module) == reads(module) == ()
    require(module, held)
    require(module, held[:1])
    set_reads(module, [Read("n", 1)] if read else [])
    text = print_module(module)
    again = parse_module(text)
    assert guards(again) == guards(module) == tuple(held)
    assert reads(again) == ((Read("n", 1),) if read else ())
    assert print_module(again) == text
    assert ("tw.guards" in text, "tw.reads" in text) == (bool(held), read)


def test_passes_keep_them() -> None:
    more = ', tw.guards = #tw.guards<["mod(a, 4) == 0" at "net.py:3"]>, tw.reads = #tw.reads<["n" of 1]>'
    after = ground(TEXT.format(more=more), "canonicalize,fuse")
    assert guards(after) == (Guard(mod(A, 4), "==", Expr.of(0), "net.py:3"),)
    assert reads(after) == (Read("n", 1),)
    assert more.removeprefix(", ") in print_module(transform(after, "lower-to-tile,plan-memory"))


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ('tw.guards = #tw.guards<["a == c"]>', "guard a == c names dims that are not declared: c"),
        ('tw.reads = #tw.reads<["a" of 1]>', "dim a is not declared as one that is read"),
        ('tw.reads = #tw.reads<["m" of 1]>', "dim m is not declared as one that is read"),
        ('tw.reads = #tw.reads<["n" of 0]>', "dim n is read from argument 0, which is f32[a, b]"),
        ('tw.reads = #tw.reads<["n" of 2]>', "dim n is read from argument 2, which is not there"),
    ],
)
def test_what_no_call_could_tell_is_malformed(more: str, said: str) -> None:
    with pytest.raises(IRError) as caught:
        parse_module(TEXT.format(more=f", {more}"))
    assert said in str(caught.value)


@pytest.mark.parametrize("text", ['["a"]', '["a == b == a"]', '["a = b"]', '["a == "]', "[a]", '["a == b" at 3]'])
def test_what_is_no_guard_does_not_parse(text: str) -> None:
    with pytest.raises(ParseError, match=r":1:\d+"):
        parse_module(TEXT.format(more=f", tw.guards = #tw.guards<{text}>"))


def test_sizes_are_drawn_that_guards_admit(rng: np.random.Generator) -> None:
    module = parse_module(TEXT.format(more=', tw.guards = #tw.guards<["mod(a, 16) == 0", "b != 1"]>'))
    drawn = size_list(module, None, rng)
    assert drawn
    assert all(sizes["a"] % 16 == 0 and sizes["b"] != 1 for sizes in drawn)
    never = parse_module(TEXT.format(more=', tw.guards = #tw.guards<["a * b < 0"]>'))
    with pytest.raises(InterpreterError, match="no sizes were found that the guards admit: a\\*b < 0"):
        size_list(never, None, rng)
    # what a caller states is not doubted
    assert size_list(never, {"a": 1, "b": 2, "n": 3}, rng) == [{"a": 1, "b": 2, "n": 3}]
