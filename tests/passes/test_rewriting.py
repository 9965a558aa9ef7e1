"""The rewriting tools: rules come to rest or are stopped, a refused rule leaves no trace, blocks sort by need."""

from __future__ import annotations

import pytest
from xdsl.ir import SSAValue

from tests.passes.graphs import Graph, ops_of
from tilewright.errors import IRError
from tilewright.ir.dtypes import BF16, F16, F32, F64, I64
from tilewright.ir.graph.elementwise import CastOp, MapOp
from tilewright.passes.rewriting import (
    Rules,
    Site,
    erase_dead,
    erase_with_dead_producers,
    near,
    only_adds_units,
    order_block,
    run_rules,
    sole_user,
    with_splat,
)
from tilewright.testing import context, ground


def test_rules_that_undo_each_other_are_stopped() -> None:
    rules = Rules()

    @rules.on(MapOp)
    def there(op: MapOp, site: Site) -> SSAValue | None:
        return site.map("cos", *op.args) if op.fn.data == "sin" else None

    @rules.on(MapOp)
    def back(op: MapOp, site: Site) -> SSAValue | None:
        return site.map("sin", *op.args) if op.fn.data == "cos" else None

    g = Graph()
    module = g.done(g.map("sin", g.input("x", [3])))
    with pytest.raises(IRError, match="does not come to rest"):
        run_rules(g.function.block, rules, context(module))


def test_a_rule_that_changes_a_type_is_an_error() -> None:
    rules = Rules()

    @rules.on(MapOp)
    def narrower(op: MapOp, site: Site) -> SSAValue | None:
        return site.make(CastOp, op.args[0], dtype="bf16")

    g = Graph()
    module = g.done(g.map("sin", g.input("x", [3])))
    with pytest.raises(IRError, match=r"rule narrower turns graph.map of f32\[3\] into bf16\[3\]"):
        run_rules(g.function.block, rules, context(module))


def test_a_refused_rule_leaves_no_trace_and_its_reason_once() -> None:
    rules = Rules()

    @rules.on(MapOp)
    def almost(op: MapOp, site: Site) -> SSAValue | None:
        site.map("exp", site.constant(1.0, F32))
        site.refuse("almost: but no")
        return None

    g = Graph()
    module = g.done(g.map("sin", g.map("sin", g.input("x", [3]))))
    before, ctx = str(module), context(module)
    run_rules(g.function.block, rules, ctx)
    run_rules(g.function.block, rules, context(module, limit=0))
    assert str(module) == before
    assert [r.reason for r in ctx.refused] == ["almost: but no"] * 2


def test_a_new_op_takes_over_the_place_in_the_users_source() -> None:
    from tilewright.ir.attributes import Str

    rules = Rules()

    @rules.on(MapOp)
    def other(op: MapOp, site: Site) -> SSAValue | None:
        return site.map("cos", *op.args) if op.fn.data == "sin" else None

    g = Graph()
    value = g.map("sin", g.input("x", [3]))
    value.owner.attributes["loc"] = Str("net.py:7")  # type: ignore[union-attr]
    module = g.done(value)
    run_rules(g.function.block, rules, context(module))
    (made,) = [op for op in module.walk() if isinstance(op, MapOp)]
    assert (made.fn.data, made.loc) == ("cos", "net.py:7")


def test_dead_chains_go_whole() -> None:
    g = Graph()
    x = g.input("x", [3])
    g.map("exp", g.map("sin", x))
    module = g.done(x)
    assert erase_dead(g.function.block) == 2
    assert ops_of(module) == []


def test_a_block_sorts_by_need_and_keeps_the_rest_in_order() -> None:
    g = Graph()
    x = g.input("x", [3])
    a, b = g.map("sin", x), g.map("cos", x)
    c = g.map("add", a, b)
    module = g.done(c, g.map("exp", x))
    block = g.function.block
    op = a.owner
    block.detach_op(op)  # type: ignore[arg-type]
    block.insert_op_after(op, c.owner)  # type: ignore[arg-type]
    order_block(block)
    module.verify()
    assert ops_of(module) == ["cos", "sin", "add", "exp"]


def test_a_circle_is_an_error_not_a_hang() -> None:
    g = Graph()
    x = g.input("x", [3])
    a = g.map("sin", x)
    b = g.map("cos", a)
    g.done(b)
    a.owner.operands[0] = b  # type: ignore[union-attr]
    with pytest.raises(IRError, match="need each other"):
        order_block(g.function.block)


@pytest.mark.parametrize(
    ("found", "dtype", "fits"),
    [
        (0.1, F64, True),
        (0.1 + 1e-9, F64, False),
        (0.10000000149011612, F32, True),
        (0.1001, F32, False),
        (0.0999755859375, F16, True),
        (0.10009765625, BF16, True),
        (0.11, BF16, False),
        (0.1, I64, True),
    ],
)
def test_a_bound_constant_may_be_rounded_but_not_another(found: float, dtype: object, fits: bool) -> None:
    assert near(found, 0.1, dtype) == fits  # type: ignore[arg-type]


def test_the_number_beside_a_value_is_found_on_either_side() -> None:
    g = Graph()
    x = g.input("x", [3])
    left, right, both = g.map("mul", 2.0, x), g.map("sub", x, 3.0), g.map("add", 1.0, g.constant(4.0))
    g.done(left, right, both)
    assert with_splat(left.owner) == (x, 2.0)  # type: ignore[arg-type]
    assert with_splat(right.owner) == (x, 3.0)  # type: ignore[arg-type]
    assert with_splat(both.owner) is None  # type: ignore[arg-type]


def test_reshapes_that_keep_the_sizes_above_one_only_add_units() -> None:
    g = Graph()
    x = g.input("x", [3, 1, 5])
    assert only_adds_units(g.reshape(x, 1, 3, 5).owner)
    assert not only_adds_units(g.reshape(x, 5, 3).owner)
    assert not only_adds_units(g.broadcast(x, 1, 3, 1, 5).owner)


def test_the_sole_user_is_one_op_however_often_it_reads() -> None:
    g = Graph()
    x, y, z = (g.input(name, [3]) for name in "xyz")
    twice = g.map("mul", x, x)
    g.map("exp", y)
    g.map("sin", y)
    assert sole_user(x) is twice.owner
    assert sole_user(y) is None
    assert sole_user(z) is None


def test_an_op_that_a_rule_erased_is_not_looked_at_again(seed: int) -> None:
    """A rule may leave more dead than its own op: what is dead by then was in the queue, too."""
    g = Graph()
    x = g.input("x", [3])
    shared = g.map("exp", x)
    module = g.done(g.map("sub", g.map("neg", g.map("neg", shared)), shared))
    after = ground(module, "canonicalize", seed=seed, exact=True)
    assert ops_of(after) == ["exp", "sub"]


def test_producers_that_two_dead_ops_share_are_erased_once() -> None:
    g = Graph()
    x = g.input("x", [3])
    shared = g.map("exp", x)
    dead = [g.map(fn, shared).owner for fn in ("sin", "cos")]
    g.done(x)
    assert erase_with_dead_producers(*dead, shared.owner) == []
    assert ops_of(g.module) == []
