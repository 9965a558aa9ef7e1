"""Properties over random graphs: a pass changes no result, and a second run of it finds nothing left to do."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from xdsl.dialects.builtin import ModuleOp

from tests.passes.random_graphs import modules
from tilewright.ir.graph.structure import GroupOp
from tilewright.ir.module import print_module
from tilewright.passes.canonicalize import Canonicalize
from tilewright.passes.fold import Fold
from tilewright.passes.fuse import Fuse
from tilewright.passes.materialise import Materialise
from tilewright.passes.recognize import Recognize
from tilewright.testing import ground, transform

SIZES = [{"b": 2, "t": 3}, {"b": 0, "t": 1}, {"b": 1, "t": 1}]
few = settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


@few
@given(module=modules(), seed=st.integers(0, 2**31))
def test_canonicalize_and_fold_change_no_result_and_come_to_rest(module: ModuleOp, seed: int) -> None:
    after = ground(module, "canonicalize,fold,canonicalize", sizes=SIZES, seed=seed, rounding="f32")
    assert print_module(transform(after, [Canonicalize(), Fold()])) == print_module(after)


@few
@given(module=modules(), seed=st.integers(0, 2**31))
def test_recognize_changes_no_result(module: ModuleOp, seed: int) -> None:
    ground(module, [Canonicalize(), Recognize()], sizes=SIZES[:1], seed=seed, rounding="f32")


@few
@given(
    module=modules(),
    seed=st.integers(0, 2**31),
    options=st.fixed_dictionaries(
        {"epilogues": st.booleans(), "prologues": st.booleans(), "max_ops": st.sampled_from([1, 3, 32])}
    ),
    first=st.booleans(),
)
def test_fuse_changes_no_result_and_leaves_nothing_outside(
    module: ModuleOp, seed: int, options: dict[str, int], first: bool
) -> None:
    passes = [*([Canonicalize()] if first else []), Fuse(**options)]  # type: ignore[arg-type]
    after = ground(module, passes, sizes=SIZES, seed=seed, rounding="f32")
    outside = {op.name for op in next(iter(after.body.block.ops)).regions[0].block.ops}
    assert outside <= {"graph.group", "graph.weight", "graph.reshape", "graph.return"}


@few
@given(module=modules(), seed=st.integers(0, 2**31))
def test_materialise_changes_no_result(module: ModuleOp, seed: int) -> None:
    after = ground(module, Materialise(), sizes=SIZES, seed=seed)
    kernels = [op for op in after.walk() if isinstance(op, GroupOp)]
    assert all(len(list(op.block.ops)) <= 4 for op in kernels)


@pytest.mark.slow
@settings(max_examples=300)
@given(module=modules(most=24), seed=st.integers(0, 2**31))
def test_everything_together_changes_no_result(module: ModuleOp, seed: int) -> None:
    passes = "canonicalize,fold,canonicalize,recognize,canonicalize,dedupe-layers,fuse"
    ground(module, passes, sizes=SIZES, seed=seed, rounding="f32")
