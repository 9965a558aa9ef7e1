"""@prepare: routines one after another, each with what the last one packed, one tensor in memory at a time."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.runtime.programs import ONE, affine_program, affine_step, code, pool, values
from tilewright.errors import WeightsError
from tilewright.ir.dtypes import F32
from tilewright.runtime.prepare import prepare_weights
from tilewright.runtime.program import Program, Ref, Routine, Slot, TensorSpec
from tilewright.runtime.safetensors_file import SafetensorsFile


def chained() -> Program:
    """power as ever; then, in a routine of its own, last = (power * bias + bias) * power + bias."""
    bias, power, last = Ref("weight", 1), Ref("packed", 0), Ref("packed", 1)
    second = Routine(
        (
            affine_step("third", power, bias, bias, Ref("slot", 0), ONE),
            affine_step("fourth", Ref("slot", 0), power, bias, last, ONE),
        ),
        (Slot((ONE * 4,)),),
    )
    base = affine_program()
    return replace(base, packed=(*base.packed, TensorSpec("last", (ONE,), F32)), prepare=(*base.prepare, second))


@pytest.mark.parametrize("in_file", [False, True])
def test_routines_see_what_earlier_ones_packed(in_file: bool, tmp_path: Path, rng: np.random.Generator) -> None:
    weights = values(rng)
    held = prepare_weights(chained(), code(), pool(), weights, tmp_path / "w" if in_file else None)
    scale, bias = weights["scale"], weights["bias"]
    power = scale * scale + bias
    np.testing.assert_array_equal(held.stored["packed:power"].numpy(), power)
    np.testing.assert_array_equal(held.stored["packed:last"].numpy(), (power * bias + bias) * power + bias)
    assert held.pointers.tolist() == [
        held.stored[name].address for name in ("weight:scale", "weight:bias", "packed:power", "packed:last")
    ]


def test_the_file_is_the_same_every_time(tmp_path: Path, rng: np.random.Generator) -> None:
    weights = values(rng)
    for name in ("a", "b"):
        prepare_weights(chained(), code(), pool(), weights, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    SafetensorsFile(tmp_path / "a")


def test_a_source_that_does_not_fit_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="2 problems"):
        prepare_weights(affine_program(), code(), pool(), {}, tmp_path / "w")
    assert not (tmp_path / "w").exists()


def test_memory_stays_near_one_tensor(tmp_path: Path) -> None:
    script = f"""
import resource
from pathlib import Path
import numpy as np
from tests.runtime.programs import affine_program, affine_step, code, pool
from tilewright.ir.dims import Expr
from tilewright.ir.dtypes import F32
from tilewright.runtime.prepare import prepare_weights
from tilewright.runtime.program import Ref, Routine, TensorSpec
n, count = Expr.of(1 << 21), 20
packed = tuple(TensorSpec(f"p{{i}}", (n,), F32) for i in range(count))
big, one = Ref("weight", 0), Ref("weight", 1)
prepare = tuple(Routine((affine_step("s", big, one, one, Ref("packed", i), n),)) for i in range(count))
program = affine_program(
    weights=(TensorSpec("big", (n,), F32), TensorSpec("one", (Expr.of(1),), F32)),
    packed=packed, prepare=prepare, main=Routine(),
)
source = {{"big": np.ones(1 << 21, np.float32), "one": np.ones(1, np.float32)}}
code(), pool()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
held = prepare_weights(program, code(), pool(), source, Path({str(tmp_path / "w")!r}))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
assert held.stored["packed:p19"].numpy()[-1] == 2
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 3 * 8 << 10, "the program packs 20 tensors of 8 MiB"
