"""Attention's kernels, printed and interpreted: packed heads, and parts of keys merged in order."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.backends.triton.both_interpreters import near, run_both
from tests.passes.lower_to_tile.groups import draw
from tests.passes.lower_to_tile.test_packed_sequences import packed
from tests.passes.lower_to_tile.test_skeletons import attention
from tilewright.backends.triton.interpreter import InterpretedKernels
from tilewright.ir.backend import backends
from tilewright.ir.dims import Dim, DimSpace
from tilewright.ir.graph.base import tensor
from tilewright.ir.passing import Context
from tilewright.ir.schedules import Schedule
from tilewright.ir.tile.base import buffer
from tilewright.passes.lower_to_tile.frame import Lowered
from tilewright.passes.lower_to_tile.skeletons import lower_group


@pytest.mark.parametrize("case", [{}, {"mask": "sliding", "window": 90, "keys": "t"}], ids=str)
def test_every_variant_computes_what_its_tiles_say(
    case: dict[str, Any], interpreter: InterpretedKernels, rng: np.random.Generator
) -> None:
    own = backends()["cuda"].machines["sm_90"]()
    machine = replace(own, rules=replace(own.rules, key_part=64))
    made = attention(heads=3, groups=1, **case)
    made.properties["schedule"] = Schedule.of({"order": "query-outer", "block_q": 64, "heads": 3})
    space = DimSpace([Dim(name, 0, 4096) for name in "bts"])
    lowered = lower_group(made, "kernel", Context(machine, space))
    assert [v.limit for v in lowered.variants] == [1, 16, None]
    for variant, queries in zip(lowered.variants, (1, 9, 140), strict=True):
        sizes = {"b": 1, "t": queries, "s": 150}
        inputs = [np.ascontiguousarray(x.numpy()) for x in draw(made, sizes, rng)]
        outputs = [np.zeros([d.evaluate(sizes) for d in tensor(v).dims], np.float32) for v in made.yielded]
        for found, wanted in zip(*run_both(variant.kernel, inputs, outputs, sizes, interpreter), strict=True):
            near(found, wanted, steps=16)


@pytest.mark.parametrize("what", ["key-outer", "packed"])
def test_launches_before_attention_leave_what_their_tiles_say(
    what: str, interpreter: InterpretedKernels, rng: np.random.Generator
) -> None:
    own = backends()["cuda"].machines["sm_90"]()
    machine = replace(own, rules=replace(own.rules, key_part=64))
    sizes = {"b": 1, "t": int(rng.integers(130, 180))}
    if what == "packed":
        made = packed("causal", positions=True)
        ids = np.sort(rng.integers(0, 3, (1, sizes["t"])))
        drawn = draw(made, sizes, rng)
        given = [*(np.ascontiguousarray(x.numpy()) for x in drawn[:3]), ids, *[np.arange(sizes["t"])[None]] * 2]
    else:
        made = attention(heads=2, groups=1, mask="causal", keys="t")
        made.properties["schedule"] = Schedule.of({"order": what, "block_q": 64, "part": 64})
        given = [np.ascontiguousarray(x.numpy()) for x in draw(made, sizes, rng)]
    space = DimSpace([Dim(name, 0, 4096) for name in "bts"])

    def launched(part: Lowered) -> list[np.ndarray[Any, Any]]:
        before = [] if part.first is None else launched(part.first)
        kernel = part.variants[-1].kernel
        kinds = [buffer(x) for x in kernel.buffers[len(kernel.inputs) :]]
        outputs = [np.zeros([d.evaluate(sizes) for d in kind.dims], kind.dtype.numpy()) for kind in kinds]
        dims = {name: sizes[name] for name in part.dims}
        found, wanted = run_both(kernel, [*given, *before], outputs, dims, interpreter)
        for value, other in zip(found, wanted, strict=True):
            near(value, other, steps=16)
        return list(wanted)

    launched(lower_group(made, "kernel", Context(machine, space)))
