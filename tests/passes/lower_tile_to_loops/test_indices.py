"""Bounds are proved from loops and dims; what cannot be proved is not claimed."""

from __future__ import annotations

from tilewright.ir.dims import Expr, ceildiv, floordiv, minimum
from tilewright.passes.lower_tile_to_loops.indices import Facts

N, M = Expr.of("n"), Expr.of("m")


def test_a_coordinate_stays_inside_its_extent() -> None:
    facts = Facts()
    at = facts.induction(Expr.of(0), N, 6)
    assert facts.at_least(N - at, 1)
    assert facts.at_least(at, 0)
    assert not facts.at_least(N - at, 6), "the last tile may be short"


def test_tiles_that_divide_are_whole() -> None:
    facts = Facts()
    fixed = facts.induction(Expr.of(0), Expr.of(384), 64)
    assert facts.at_least(384 - fixed, 64)
    multiple = facts.induction(Expr.of(0), N * 64, 64)
    assert facts.at_least(N * 64 - multiple, 64)


def test_the_last_panel_fits_where_columns_divide() -> None:
    facts = Facts()
    for columns, whole in ((384, True), (100, False)):
        panel = facts.induction(Expr.of(0), ceildiv(columns, 64), 1)
        assert facts.at_least(columns - panel * 64, 64) is whole


def test_nested_loops_are_taken_from_the_inside() -> None:
    facts = Facts()
    outer = facts.induction(Expr.of(0), Expr.of(256), 64)
    inner = facts.induction(outer, outer + 64, 16)
    assert facts.at_least(256 - inner, 16)
    assert not facts.at_least(256 - inner, 17)


def test_a_minimum_is_at_most_either_side() -> None:
    facts = Facts()
    at = facts.induction(Expr.of(0), minimum(N, M), 1)
    assert facts.at_least(N - at, 1)
    assert facts.at_least(M - at, 1)


def test_whole_blocks_of_a_part_lie_inside_the_extent() -> None:
    facts = Facts()
    part = facts.induction(Expr.of(0), N, 1024)
    last = minimum(N, part + 1024)
    whole = facts.induction(part, part + floordiv(last - part, 64) * 64, 64)
    assert facts.at_least(whole, 0)
    assert facts.at_least(N - whole, 64)
    assert not facts.at_least(N - whole, 65)
    rest = facts.induction(part, last, 64)
    assert not facts.at_least(N - rest, 64)


def test_what_is_rounded_down_is_no_larger_than_before() -> None:
    facts = Facts()
    assert facts.at_least(N - floordiv(N, 7) * 7, 0)
    assert facts.at_least(N + M - floordiv(N + M, 7) * 7, 0)
    assert not facts.at_least(N - floordiv(N, 7) * 8, 0)
    assert not facts.at_least(floordiv(N, 7) * 7 - N, 0)


def test_integers_read_at_run_time_may_be_anything() -> None:
    facts = Facts()
    read = facts.opaque()
    assert not facts.at_least(read, 0)
    assert not facts.at_least(N - read, 1)
    assert facts.at_least(read - read, 0)


def test_a_factor_that_may_be_negative_gives_a_loop_no_sign() -> None:
    facts = Facts()
    at = facts.induction(Expr.of(0), N, 1)
    wild = Expr.of("floordiv(m - 100, 7)")
    assert not facts.at_least(at * wild, 0)
    assert not facts.at_least(at * wild * -1, 0)
    assert facts.at_least(at * Expr.of("floordiv(m, 7)"), 0)
    assert not facts.at_least(minimum(N, M) * wild * -1 + N * wild, 0)


def test_a_quotient_is_at_least_that_of_a_smaller_number() -> None:
    facts = Facts()
    part = facts.induction(Expr.of(0), ceildiv(N, 128), 8)
    seen = minimum(N, M)
    whole = facts.induction(part, minimum(part + 8, floordiv(seen, 128)), 1)
    assert facts.at_least(ceildiv(N, 128) - whole, 1)
    assert not facts.at_least(ceildiv(N, 128) - whole, 2)
    assert facts.at_least(floordiv(N + 127, 128) - floordiv(seen + 127, 128), 0)
    assert not facts.at_least(floordiv(seen + 127, 128) - floordiv(N, 128), 0)
