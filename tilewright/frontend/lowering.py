"""From an exported program to `@main`: walks the graph once and lets the operator table build each node."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Final

from xdsl.ir import Block, Operation, SSAValue

from tilewright.errors import IRError, Problem, UnsupportedOpError
from tilewright.frontend.aten.complex import Pair, has_pair, in_parts
from tilewright.frontend.builder import Builder, Weak
from tilewright.frontend.custom_ops import Launches, registered
from tilewright.frontend.decomposing import called
from tilewright.frontend.externs import Externs
from tilewright.frontend.liveness import live_nodes
from tilewright.frontend.locations import innermost_module, of_node
from tilewright.frontend.operand_dtypes import require_one_dtype
from tilewright.frontend.registry import Unsupported, lowerings
from tilewright.frontend.symbols import UnknownSizeError
from tilewright.ir.dtypes import F64

# what a node stands for after its operator was refused: lowering goes on, to find the other ones too
REFUSED: Final = object()


class GraphLowering:
    """Lowers the nodes of one exported program (and of the graphs inside it) into a builder's block.

    values: what each node stands for: an SSA value, a size (`Expr`), a number dependent on sizes (`Weak`), a Python
    value, or a tuple of those. The caller binds the placeholders first, and names in `inputs` and `weights` those that
    the user has a name for.
    """

    def __init__(self, builder: Builder, *, externs: Externs | None) -> None:
        self.builder = builder
        self.externs = externs
        self.launches = Launches()
        self.values: dict[Any, Any] = {}
        self.inputs: dict[Any, str] = {}
        self.weights: dict[Any, str] = {}
        self.operators: Counter[str] = Counter()
        self._problems: dict[tuple[str, str], list[str | None]] = {}
        # operators of libraries that nobody has registered, as tw.register_op takes them
        self._strangers: dict[str, None] = {}

    def run(self, module: Any) -> list[Any]:
        """Lowers every node that the output needs and returns the output's leaves."""
        live = live_nodes(module.graph)
        for node in module.graph.nodes:
            if node.op == "output":
                return [self.value(leaf) for leaf in _flat(node.args[0])]
            if node in live and node.op != "placeholder":
                self.values[node] = self._node(module, node)
        return []

    def value(self, argument: Any) -> Any:
        """What an argument of a node stands for."""
        if isinstance(argument, (list, tuple)):
            return [self.value(a) for a in argument]
        return self.values.get(argument) if hasattr(argument, "meta") else argument

    def require_supported(self) -> None:
        """UnsupportedOpError listing every operator without a lowering: how often it occurs and where first."""
        if self._problems:
            problems = [
                Problem(f"{reason}, {len(places)} use{'s' if len(places) > 1 else ''}", op=name, where=places[0])
                for (name, reason), places in sorted(self._problems.items())
            ]
            step = (
                "write these parts with supported operators, or compile the rest of the model; "
                "whether the other operators have kernels shows after that"
            )
            if self._strangers:
                name = next(iter(self._strangers))
                step = f'say how it is computed: tw.register_op("{name}", reference=f), or kernel=; else {step}'
            raise UnsupportedOpError(problems, step=step)

    def _node(self, module: Any, node: Any) -> Any:
        if node.op == "get_attr":
            return getattr(module, node.target)
        self.builder.at(node)
        if node.target is operator.getitem:
            return self._item(node, *node.args)
        val = node.meta.get("val")
        if not hasattr(val, "shape") and not isinstance(val, (tuple, list)):
            return self._scalar(node, val)
        inner = next((a for a in node.args if hasattr(a, "op") and a.op == "get_attr"), None)
        if inner is not None and hasattr(self.values.get(inner), "graph"):
            return self._inline(node, self.values[inner], node.args[node.args.index(inner) + 1 :])
        return self._operator(node)

    def _item(self, node: Any, source: Any, number: int) -> Any:
        """One of an operator's results. Some lowerings leave out what hardly anybody reads, as None."""
        made = self.value(source)
        if made is REFUSED:
            return REFUSED
        if made[number] is None and hasattr(node.meta.get("val"), "shape"):
            return self._refuse(source, f"its result {number} is not computed")
        return made[number]

    def _scalar(self, node: Any, val: Any) -> Any:
        """A size or number among the nodes."""
        import torch

        if isinstance(val, torch.SymInt):
            try:
                return self.builder.symbols.size(val)
            except UnknownSizeError as unknown:
                return self._refuse(node, f"its size {unknown}")
        if isinstance(val, torch.SymFloat):
            return self._number(node)
        if isinstance(val, torch.SymBool):
            return self._refuse(node, "a condition on sizes")
        return val

    def _number(self, node: Any) -> Any:
        """A number computed from sizes, in f64 as Python computes it."""
        name = getattr(node.target, "__name__", str(node.target))
        fn = _NUMBER_FUNCTIONS.get(name)
        operands = self.value(node.args)
        if name.startswith(("item", "_local_scalar_dense")):
            return self._refuse(node, "a Python number out of a tensor (.item(), float()): keep it a tensor")
        if fn is None or any(o is REFUSED for o in operands):
            return self._refuse(node, f"the number function {name} of sizes")
        if fn == "":
            return Weak(self.builder.operand(operands[0], F64))
        return Weak(self.builder.map(fn, *operands, dtype=F64))

    def _inline(self, node: Any, inner: Any, arguments: Iterable[Any]) -> Any:
        """A graph inside the graph (a region with grad or autocast switched): its nodes, in place."""
        wrapper = getattr(node.target, "__name__", str(node.target))
        if wrapper not in _TRANSPARENT:
            return self._refuse(node, "control flow")
        if wrapper == "wrap_with_autocast" and node.args[2]:
            # it casts what it likes at each call; a switched-off region (rotary embeddings have one) changes nothing
            reason = 'torch.autocast inside the model: leave it out and compile with precision="bf16"'
            return self._refuse(node, reason, at=next((n for n in inner.graph.nodes if n.op == "call_function"), None))
        placeholders = [n for n in inner.graph.nodes if n.op == "placeholder"]
        for placeholder, argument in zip(placeholders, arguments, strict=True):
            self.values[placeholder] = self.value(argument)
        return tuple(self.run(inner))

    def _operator(self, node: Any) -> Any:
        name = str(node.target)
        # with what the model called where that has been taken apart
        self.operators.update({name, called(node)})
        args = self.value(list(node.args))
        kwargs = {key: self.value(argument) for key, argument in node.kwargs.items()}
        if any(self.values.get(n) is REFUSED for n in node.all_input_nodes):
            # an operand was refused already; this node is not at fault
            return REFUSED
        require_one_dtype(node, self.inputs, self.weights, _place(node))
        is_complex = has_pair([*args, *kwargs.values()]) or self.builder.is_complex
        lower = in_parts(name) if is_complex else lowerings().get(name)
        reason = "no lowering for complex numbers" if is_complex else "no lowering"
        fault: IRError | None = None
        if lower is not None:
            try:
                return self._fitted(node, lower(self.builder, *args, **kwargs))
            except Unsupported as verdict:
                reason = str(verdict)
            except IRError as malformed:
                fault = malformed
        custom = registered(name)
        if custom is not None:
            try:
                return self._fitted(node, self.launches.call(self.builder, node, custom, args, kwargs))
            except Unsupported as verdict:
                reason = str(verdict)
        elif lower is None and not name.startswith("aten."):
            reason = "no lowering (tw.register_op gives it one)"
            if hasattr(node.target, "_schema"):
                self._strangers[node.target.name()] = None
        if self.externs is not None:
            try:
                return self.externs.call(self.builder, node, args, kwargs)
            except Unsupported as verdict:
                reason = str(verdict)
        if fault is not None:
            # a lowering that built what the graph dialect refuses: not an operator that is missing
            problems = [replace(p, where=p.where or _place(node)) for p in fault.problems]
            raise type(fault)(problems, step=fault.step) from fault
        return self._refuse(node, reason)

    def _fitted(self, node: Any, made: Any) -> Any:
        """The results in the types torch computed."""
        val = node.meta["val"]
        if isinstance(made, tuple):
            return tuple(self._fit(value, fake) for value, fake in zip(made, val, strict=True))
        return self._fit(made, val)

    def _fit(self, value: Any, fake: Any) -> Any:
        if isinstance(value, Pair):
            return Pair(self._fit(value.real, fake), self._fit(value.imaginary, fake))
        fits = isinstance(value, SSAValue) and hasattr(fake, "shape")
        return self.builder.fit(value, self.builder.part_of(fake)) if fits else value

    def _refuse(self, node: Any, reason: str, *, at: Any = None) -> Any:
        name = str(node.target)
        if (whole := called(node)) != name:
            name, reason = whole, f"{reason} for {name}, which it is made of"
        self._problems.setdefault((name, reason), []).append(_place(node if at is None else at))
        return REFUSED


def _place(node: Any) -> str | None:
    """The user's line, or the module where all code is torch's own: torch.nn.Sequential has no line of the user's."""
    path, _ = innermost_module(node) or ("", "")
    return of_node(node) or (f"module {path}" if path else None)


_TRANSPARENT = ("wrap_with_set_grad_enabled", "wrap_with_autocast", "inductor_compiled_code")
_NUMBER_FUNCTIONS = {
    "sym_float": "",
    "truediv": "div",
    "int_truediv": "div",
    "mul": "mul",
    "add": "add",
    "sub": "sub",
    "pow": "pow",
    "_sym_sqrt": "sqrt",
    "sqrt": "sqrt",
    "neg": "neg",
    "_sym_log": "log",
    "_sym_exp": "exp",
}


def _flat(value: Any) -> list[Any]:
    if isinstance(value, (list, tuple)):
        return [leaf for item in value for leaf in _flat(item)]
    return [value]


def arrange(block: Block, results: Iterable[SSAValue]) -> None:
    """Keeps the ops that the results depend on, each operand just before its first user.

    The order follows from the results alone: a forward that iterates over a set traces differently in every process,
    and equal models must give equal programs.
    """
    order: dict[Operation, None] = {}
    for result in results:
        pending = [(result.owner, False)]
        while pending:
            op, operands_done = pending.pop()
            if not isinstance(op, Operation) or op in order:
                continue
            if operands_done:
                order[op] = None
            else:
                pending.append((op, True))
                pending += [(operand.owner, False) for operand in reversed(op.operands)]
    found = list(block.ops)
    for op in found:
        block.detach_op(op)
    for op in reversed(found):
        if op not in order:
            op.erase()
    block.add_ops(order)
