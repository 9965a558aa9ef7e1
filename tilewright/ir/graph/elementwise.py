"""Elementwise ops: functions of the scalar table, and casts."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING

from xdsl.irdl import irdl_op_definition, operand_def, prop_def, result_def, traits_def, var_operand_def
from xdsl.traits import Pure

from tilewright.ir.attributes import Str
from tilewright.ir.cost import Cost
from tilewright.ir.dtypes import DTYPES
from tilewright.ir.graph.base import GraphOp, Setting, broadcast_dims, tensor
from tilewright.ir.scalars import SCALARS, ScalarFunction
from tilewright.ir.types import TensorType

if TYPE_CHECKING:
    import torch


@irdl_op_definition
class MapOp(GraphOp):
    """A function of the scalar table applied elementwise; operands broadcast as in NumPy, dtypes follow its rule."""

    name = "graph.map"
    args = var_operand_def(TensorType)
    out = result_def(TensorType)
    fn = prop_def(Str)
    traits = traits_def(Pure())

    @property
    def function(self) -> ScalarFunction:
        """The entry of the scalar table."""
        if self.fn.data not in SCALARS:
            near = get_close_matches(self.fn.data, SCALARS, n=1)
            meant = f"; did you mean {near[0]!r}?" if near else ""
            raise self.malformed(f"no elementwise function is called {self.fn.data!r}{meant}")
        return SCALARS[self.fn.data]

    def infer(self) -> Sequence[TensorType]:
        types = [tensor(a) for a in self.args]
        dtype = self.function.result([t.dtype for t in types])
        if dtype is None:
            given = ", ".join(t.dtype.name for t in types)
            raise self.malformed(
                f"{self.fn.data} takes {self.function.arity} operands by the rule {self.function.rule!r}, got ({given})"
            )
        return [TensorType.of(broadcast_dims(self, *(t.dims for t in types)), dtype)]

    def reference(self, *args: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.function.torch(*args)
        return result

    def cost(self) -> Cost:
        return self.compulsory(vector=tensor(self.out).elements * self.function.flops)


@irdl_op_definition
class CastOp(GraphOp):
    """x in another dtype: floats round to nearest even, float to integer truncates, anything to i1 is `!= 0`."""

    name = "graph.cast"
    x = operand_def(TensorType)
    out = result_def(TensorType)
    dtype = prop_def(Str)
    traits = traits_def(Pure())

    def infer(self) -> Sequence[TensorType]:
        self.check_choice("dtype", self.dtype.data, tuple(DTYPES))
        return [TensorType.of(tensor(self.x).dims, DTYPES[self.dtype.data])]

    def evaluate(self, setting: Setting, x: torch.Tensor) -> torch.Tensor:
        return x.to(setting.torch(tensor(self.out).dtype))

    def cost(self) -> Cost:
        return self.compulsory()


ELEMENTWISE = [MapOp, CastOp]
