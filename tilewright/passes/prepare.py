"""The @prepare function of a module: adding results to it, by cloning what they are computed from."""

from __future__ import annotations

from xdsl.dialects.builtin import ModuleOp
from xdsl.ir import Operation, SSAValue

from tilewright.errors import IRError
from tilewright.ir.graph.structure import FuncOp, PackedOp
from tilewright.passes.rewriting import erase, erase_dead


class Prepare:
    """Wraps a module's @prepare, making it when the first result is added."""

    def __init__(self, module: ModuleOp) -> None:
        self.module = module
        self.function = next(
            (f for f in module.body.block.ops if isinstance(f, FuncOp) and f.kind.data == "prepare"), None
        )
        self._cloned: dict[SSAValue, SSAValue] = {}

    def add(self, value: SSAValue, name: str) -> str:
        """Makes a value of another function a result of @prepare; gives the result's name, made unique."""
        return self.add_result(self.clone(value), name)

    def results(self) -> dict[str, SSAValue]:
        """The results of @prepare by name."""
        return self._function().returned

    def add_result(self, cloned: SSAValue, name: str) -> str:
        """Makes a value of @prepare itself one of its results."""
        function = self._function()
        for known, result in function.returned.items():
            if result is cloned:
                return known
        names = set(function.result_names.data)
        unique, n = name, 2
        while unique in names:
            unique, n = f"{name}.{n}", n + 1
        last = function.terminator
        returned = [*last.values, cloned]
        erase(last)
        function.finish(returned, (*function.result_names.data, unique))
        return unique

    def drop_unread(self) -> None:
        """Keeps those results alone that a function of the module reads: each one takes memory as long as a program."""
        if self.function is None:
            return
        read = {op.label.data for op in self.module.walk() if isinstance(op, PackedOp)}
        kept = {name: value for name, value in self.function.returned.items() if name in read}
        if len(kept) < len(self.function.returned):
            erase(self.function.terminator)
            self.function.finish(list(kept.values()), list(kept))
            erase_dead(self.function.block)

    def clone(self, value: SSAValue) -> SSAValue:
        """The value inside @prepare, its ops cloned there; a packed tensor is the prepare value it names."""
        if value in self._cloned:
            return self._cloned[value]
        function = self._function()
        op = value.owner
        if not isinstance(op, Operation):
            raise IRError("an input cannot be part of @prepare", step="hoist only what depends on weights")
        if isinstance(op, PackedOp):
            return function.returned[op.label.data]
        operands = {o: self.clone(o) for o in op.operands}
        last = function.terminator
        made = op.clone(operands)
        function.block.insert_op_before(made, last)
        for old, new in zip(op.results, made.results, strict=True):
            self._cloned[old] = new
        return self._cloned[value]

    def append(self, op: Operation) -> None:
        """Puts an op at the end of @prepare."""
        function = self._function()
        function.block.insert_op_before(op, function.terminator)

    def _function(self) -> FuncOp:
        if self.function is None:
            self.function = FuncOp.begin("prepare", {}, kind="prepare").finish([], [])
            self.module.body.block.insert_op_before(self.function, next(iter(self.module.body.block.ops)))
        return self.function
