"""Making ops from plain values: inferred results, optional parts, locations, and no trace of what was refused."""

from __future__ import annotations

from typing import ClassVar

import pytest
from xdsl.ir import Block, Dialect, Region
from xdsl.irdl import irdl_op_definition, region_def
from xdsl.parser import Parser
from xdsl.utils.exceptions import VerifyException

from tests.ir.graph.single_op import value
from tilewright.errors import IRError
from tilewright.ir.attributes import Bool, Str
from tilewright.ir.graph.attention import AttentionOp
from tilewright.ir.graph.contraction import MatmulOp
from tilewright.ir.graph.elementwise import CastOp, MapOp
from tilewright.ir.graph.reduction import NormOp, TopkOp
from tilewright.ir.graph.shape import ConcatOp
from tilewright.ir.module import new_context
from tilewright.ir.operation import TwOperation


@irdl_op_definition
class BareOp(TwOperation):
    """A region and nothing else."""

    name = "bare.op"
    body = region_def()
    INFERS: ClassVar[bool] = False


def test_a_region_is_not_read_as_properties() -> None:
    context = new_context()
    context.load_dialect(Dialect("bare", [BareOp], []))
    op = BareOp.make(regions=[Region(Block([BareOp.make(regions=[Region(Block())])]))])
    assert Parser(context, str(op)).parse_op().is_structurally_equivalent(op)


def test_properties_take_plain_values_or_attributes_and_defaults_fill_in() -> None:
    a, b = value([2, 3]), value([4, 3])
    for given in (True, Bool(True)):
        assert MatmulOp.make(a, b, transpose_b=given).transpose_b.data is True
    assert MatmulOp.make(a, value([3, 4])).transpose_b.data is False
    assert MatmulOp.make(a, value([3, 4]), transpose_b=None).transpose_b.data is False


def test_optional_and_variadic_operands() -> None:
    x, w = value([2, 3]), value([3])
    assert NormOp.make(x, kind="rms", eps=1e-6).weight is None
    assert NormOp.make(x, None, w, kind="rms", eps=1e-6).bias is w
    assert list(ConcatOp.make(x, x, axis=0).xs) == [x, x]
    assert list(ConcatOp.make([x, x], axis=0).xs) == [x, x]


def test_ops_stand_for_their_single_result() -> None:
    x = value([2, 3])
    first = MapOp.make(x, fn="exp")
    assert MapOp.make(first, fn="neg").args[0] is first.out


def test_optional_results_follow_inference() -> None:
    q = value([1, 2, 3, 4])
    assert AttentionOp.make(q, q, q, scale=1.0).lse_out is None
    both = AttentionOp.make(q, q, q, scale=1.0, lse=True)
    assert both.lse_out is both.results[1]
    assert q.uses.get_length() == 6
    assert [str(r.type) for r in TopkOp.make(value([5]), k=2, axis=0).results] == ["f32[2]", "i64[2]"]


def test_a_refused_op_leaves_no_use_and_names_the_users_line() -> None:
    a, b = value([2, 3]), value([4, 5])
    like = MapOp.make(a, fn="exp")
    like.attributes["loc"] = Str("net.py:9")
    like.attributes["path"] = Str("encoder.layer.0")
    with pytest.raises(IRError, match=r"graph\.matmul: the contracted dims differ.*\(at net\.py:9\)"):
        MatmulOp.make(a, b, like=like)
    assert [use.operation for use in a.uses] == [like]
    assert not b.uses
    made = MapOp.make(a, fn="neg", like=like)
    assert (made.loc, made.path) == ("net.py:9", "encoder.layer.0")


def test_an_unknown_property_names_the_known_ones() -> None:
    with pytest.raises(IRError, match="no property 'transpose'") as caught:
        MatmulOp.make(value([2, 3]), value([3, 4]), transpose=True)
    assert "transpose_b" in str(caught.value)


def test_declared_types_must_be_the_inferred_ones() -> None:
    x = value([2, 3])
    wrong = CastOp.make(x, dtype="bf16", result_types=[x.type])
    with pytest.raises(VerifyException, match=r"operands imply \(bf16\[2, 3\]\), declared \(f32\[2, 3\]\)"):
        wrong.verify_()


def test_result_types_may_be_flat_for_any_number_of_results() -> None:
    x = value([5])
    types = [r.type for r in TopkOp.make(x, k=2, axis=0).results]
    assert [r.type for r in TopkOp.make(x, k=2, axis=0, result_types=types).results] == types
