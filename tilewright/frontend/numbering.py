"""Value numbering of traced graphs: two values with one number are computed in the same way from the same tensors.

What decides a value is its operator, the numbers of its operands, its constants, and every write before it. Operators
that leave all values as they are (a whole slice, a contiguous copy) count as their operand, and reshapes by the shape
they give: traces at different sizes differ in those without computing anything else. Where memory is written, whether
such an operator copies is part of its number.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

Shape = tuple[int, ...]

_RESHAPES: Final = frozenset({"aten.view.default", "aten.reshape.default", "aten._unsafe_view.default"})
_KEEPING: Final = frozenset(
    {
        "aten.alias.default",
        "aten.clone.default",
        "aten.contiguous.default",
        "aten.detach.default",
        "aten.detach_.default",
        "aten.expand.default",
        "aten.lift_fresh.default",
        "aten.lift_fresh_copy.default",
        "aten.slice.Tensor",
        "aten._to_copy.default",
        *_RESHAPES,
    }
)
_NO_VALUES: Final = frozenset({"_set_grad_enabled", "_exit_autocast"})


# Arguments that say which of its own libraries torch may use.
_LIBRARIES: Final = ("_enable", "_enabled")


class Unfollowed(Exception):  # noqa: N818  (a verdict on one graph: nothing is proved about it)
    """A graph holds something that numbering does not follow: a graph inside it, a size that data decides."""


@dataclass
class Numbered:
    """outputs: what the leaves of the output are. effects: every write, in order. nodes: each operator's number."""

    outputs: list[Hashable] = field(default_factory=list)
    effects: list[Hashable] = field(default_factory=list)
    nodes: list[tuple[Any, Hashable]] = field(default_factory=list)


class Numbering:
    """Numbers that graphs share: equal keys get equal numbers."""

    def __init__(self) -> None:
        self._table: dict[Hashable, int] = {}

    def read(self, module: Any, leaf: Callable[[Any], Hashable], size: Callable[[Any], int | float | bool]) -> Numbered:
        """Numbers a graph. leaf: what a placeholder or an attribute of the module stands for. size: the value of a
        symbolic number. Raises Unfollowed.
        """
        reader = _Reader(self._number, leaf, size, written(module))
        reader.found.outputs = [reader.value(v) for v in reader.run(module)]
        return reader.found

    def _number(self, *key: Hashable) -> Hashable:
        return "%", self._table.setdefault(key, len(self._table))


class _Reader:
    def __init__(
        self,
        number: Callable[..., Hashable],
        leaf: Callable[[Any], Hashable],
        size: Callable[[Any], int | float | bool],
        written: frozenset[int],
    ) -> None:
        self.number, self.leaf, self.size, self.written = number, leaf, size, written
        self.found = Numbered()
        self.values: dict[Any, Any] = {}
        self.effect: Hashable = None
        # asking torch for an operator's schema costs more than numbering a node
        self.usual: dict[Any, tuple[list[str], dict[str, Any]]] = {}
        self.effects: dict[Any, bool] = {}

    def run(self, module: Any) -> list[Any]:
        """Numbers the nodes of a graph in order; the nodes of its output."""
        for node in module.graph.nodes:
            if node.op == "output":
                return _flat(node.args[0])
            if node.op in ("placeholder", "get_attr"):
                if node not in self.values:
                    inner = getattr(module, str(node.target), None) if node.op == "get_attr" else None
                    self.values[node] = inner if hasattr(inner, "graph") else self.number("leaf", self.leaf(node))
            elif node.op == "call_function":
                self._node(node)
        return []

    def value(self, argument: Any) -> Any:
        """What an argument of a node is: the number of a value, or a constant with its type."""
        if isinstance(argument, (list, tuple)):
            return tuple(self.value(a) for a in argument)
        val = argument.meta.get("val") if hasattr(argument, "meta") else argument
        if hasattr(val, "node") and not hasattr(val, "shape"):
            val = self.size(val)
        elif hasattr(argument, "meta") and not isinstance(val, (bool, int, float)):
            return self.values[argument]
        if isinstance(val, float):
            # sizes in floats are worked out in two ways, and agree in all but the last bits
            return "float", f"{val:.12g}"
        return type(val).__name__, str(val)

    def _node(self, node: Any) -> None:
        val = node.meta.get("val")
        name = getattr(node.target, "__name__", "")
        if (hasattr(val, "node") and not hasattr(val, "shape")) or name in _NO_VALUES:
            return
        if node.target is operator.getitem:
            source, index = self.values[node.args[0]], node.args[1]
            one = isinstance(source, list)
            self.values[node] = source[index] if one else self.number("getitem", source, index)
            return
        if name == "_enter_autocast":
            _require_off(node.args[2])
        elif name in ("wrap_with_autocast", "wrap_with_set_grad_enabled"):
            self._inline(node, 4 if name == "wrap_with_autocast" else 1)
        elif any(hasattr(self.values.get(n), "graph") for n in node.all_input_nodes):
            raise Unfollowed(f"{name} with a graph of its own")
        else:
            self.values[node] = self._operator(node)
            self.found.nodes.append((node, self.values[node]))

    def _inline(self, node: Any, at: int) -> None:
        """A region with gradients or autocast off: its nodes as if they stood in the graph."""
        if at == 4:
            _require_off(node.args[2])
        inner = self.values[node.args[at]]
        places = [n for n in inner.graph.nodes if n.op == "placeholder"]
        for place, given in zip(places, node.args[at + 1 :], strict=True):
            self.values[place] = self.values.get(given, self.value(given))
        self.values[node] = [self.value(v) for v in self.run(inner)]

    def _operator(self, node: Any) -> Hashable:
        name, args = str(node.target), tuple(self.value(a) for a in node.args)
        if name == "aten.copy_.default" and self._onto_itself(node):
            own: Hashable = args[1]
            return own
        if name in _KEEPING or name.startswith("aten.to."):
            kept = self._kept(node, name, args)
            if kept is not None:
                return kept
        if name == "aten.scalar_tensor.default":
            # at fixed sizes it is a constant of the graph
            return self.number("leaf", self._constant(node))
        number = self.number(self.effect, name, self._stated(node, args))
        if node.target not in self.effects:
            self.effects[node.target] = _is_effect(node.target)
        if self.effects[node.target]:
            self.effect = number
            self.found.effects.append(number)
        return number

    def _kept(self, node: Any, name: str, args: Sequence[Any]) -> Hashable | None:
        """The number of an operator that gives its operand's values, in another shape perhaps; None for a cast."""
        before, after = node.args[0].meta["val"], node.meta["val"]
        if before.dtype != after.dtype:
            return None
        source, target = self._shape(before), self._shape(after)
        places = {_storage(before), _storage(after)} if self.written else set()
        copied = len(places) > 1 and bool(places & self.written)
        found: Hashable = args[0]
        if source != target:
            if name == "aten.slice.Tensor":
                found = self.number(self.effect, "slice", args[0], *self._cut(node, source))
            else:
                found = self.number(self.effect, "reshape" if name in _RESHAPES else name, args[0], target)
        return self.number(self.effect, "copy", found) if copied else found

    def _onto_itself(self, node: Any) -> bool:
        """Whether a copy writes nothing: the exporter copies buffers that were written in place onto themselves."""
        target, source = (argument.meta["val"] for argument in node.args[:2])
        if target.dtype != source.dtype or _storage(target) != _storage(source):
            return False
        places = [
            (self._shape(v), tuple(self._integer(n) for n in v.stride()), self._integer(v.storage_offset()))
            for v in (target, source)
        ]
        return places[0] == places[1]

    def _cut(self, node: Any, source: Shape) -> tuple[int, int, int, int]:
        """The axis of a slice and the elements it takes, counted from the start of the axis."""
        given = [*node.args[1:], *(0, None, None, 1)[len(node.args) - 1 :]]
        given = [node.kwargs.get(name, v) for name, v in zip(("dim", "start", "end", "step"), given, strict=True)]
        axis, start, end, step = (None if v is None else self._integer(v) for v in given)
        axis = (axis or 0) % len(source)
        return (axis, *slice(start, end, step).indices(source[axis]))

    def _stated(self, node: Any, args: Sequence[Any]) -> Hashable:
        """An operator's arguments by name, without those that say what is so unless stated."""
        schema = getattr(node.target, "_schema", None)
        if schema is None:
            return tuple(args), tuple(sorted((name, self.value(a)) for name, a in node.kwargs.items()))
        if node.target not in self.usual:
            defaults = {a.name: self.value(a.default_value) for a in schema.arguments if a.has_default_value()}
            self.usual[node.target] = [a.name for a in schema.arguments], defaults
        names, usual = self.usual[node.target]
        stated = dict(zip(names, args, strict=False))
        stated |= {name: self.value(a) for name, a in node.kwargs.items()}
        kept = {name: value for name, value in stated.items() if value != usual.get(name)}
        return tuple(sorted((name, value) for name, value in kept.items() if not name.endswith(_LIBRARIES)))

    def _constant(self, node: Any) -> Hashable:
        import torch

        given, dtype = node.args[0], node.meta["val"].dtype
        val = given.meta.get("val") if hasattr(given, "meta") else given
        number = self.size(val) if hasattr(val, "node") else val
        return constant(torch.tensor(number, dtype=dtype))

    def _integer(self, value: Any) -> int:
        val = value.meta.get("val") if hasattr(value, "meta") else value
        return int(self.size(val) if hasattr(val, "node") else val)

    def _shape(self, value: Any) -> Shape:
        return tuple(self._integer(n) for n in value.shape)


def constant(value: Any) -> Hashable:
    """The key of a tensor that is its numbers and nothing else."""
    return str(value.dtype), tuple(value.shape), repr(value.tolist())


def _require_off(enabled: Any) -> None:
    if enabled:
        raise Unfollowed("autocast")


def _is_effect(operator: Any) -> bool:
    """Whether it writes to its operands, or draws numbers: what comes after it may differ."""
    if getattr(getattr(operator, "_schema", None), "is_mutable", False):
        return True
    return any(tag.name == "nondeterministic_seeded" for tag in getattr(operator, "tags", ()))


def written(module: Any) -> frozenset[int]:
    """The memory that some operator of a graph writes to."""
    found = set()
    for node in module.graph.nodes:
        schema: Any = getattr(node.target, "_schema", None)
        if not getattr(schema, "is_mutable", False) or str(node.target) == "aten.detach_.default":
            continue
        given = {**dict(zip([a.name for a in schema.arguments], node.args, strict=False)), **node.kwargs}
        for argument in schema.arguments:
            if argument.alias_info is not None and argument.alias_info.is_write:
                for part in _flat(given.get(argument.name)):
                    if hasattr(part, "meta") and hasattr(part.meta.get("val"), "untyped_storage"):
                        found.add(_storage(part.meta["val"]))
    return frozenset(found)


def _storage(value: Any) -> int:
    try:
        return int(value.untyped_storage()._cdata)
    except NotImplementedError as unknown:
        raise Unfollowed("memory behind a transform") from unknown


def _flat(value: Any) -> list[Any]:
    return [leaf for item in value for leaf in _flat(item)] if isinstance(value, (list, tuple)) else [value]
