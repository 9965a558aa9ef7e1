"""Nested arguments and outputs as plain data: what holds the tensors of a call, without torch's pytrees.

A `Tree` describes one value: a leaf, or a dict, list, tuple or record (a dataclass or named tuple) of trees. It goes to
JSON and back, takes a value apart into leaves in a fixed order and puts leaves together again, with nothing but Python:
a loaded artifact accepts the same nested inputs and returns the same structure in a process without torch.
"""

from __future__ import annotations

import dataclasses
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

from tilewright.errors import ArgumentError, ArtifactError

TreeKind = Literal["leaf", "dict", "list", "tuple", "record"]
Key: TypeAlias = str | int
ORDERED: Final = "collections:OrderedDict"
"""The type of the one class of dicts that is made again as it was."""


class Record:
    """Stands in for an output class that is not loaded in this process: fields by attribute, by name and in order."""

    def __init__(self, type_name: str, fields: Mapping[str, Any]) -> None:
        self._type_name = type_name
        self._fields = dict(fields)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name not in self._fields:
            raise AttributeError(f"{self._type_name} has no field {name!r}; it has {', '.join(self._fields)}")
        return self._fields[name]

    def __getitem__(self, key: Key) -> Any:
        return self._fields[key] if isinstance(key, str) else list(self._fields.values())[key]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._fields.values())

    def __len__(self) -> int:
        return len(self._fields)

    def keys(self) -> list[str]:
        """The fields' names in order."""
        return list(self._fields)

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={value!r}" for name, value in self._fields.items())
        return f"{self._type_name.rpartition(':')[2]}({shown})"


@dataclass(frozen=True, slots=True)
class Tree:
    """The structure of one value.

    keys: a dict's keys or a record's field names, one a child. type: for records, and for dicts and tuples of a named
    class, "module:Class".
    """

    kind: TreeKind
    keys: tuple[Key, ...] = ()
    children: tuple[Tree, ...] = ()
    type: str | None = None

    @property
    def leaves(self) -> int:
        """How many leaves the value has."""
        return 1 if self.kind == "leaf" else sum(child.leaves for child in self.children)

    def paths(self, root: str) -> list[str]:
        """A name for each leaf in order: "batch.mask", "layers.0"; the root's own for a lone leaf."""
        if self.kind == "leaf":
            return [root]
        labels: Sequence[Key] = self.keys if self.kind in ("dict", "record") else range(len(self.children))
        return [
            path
            for label, child in zip(labels, self.children, strict=True)
            for path in child.paths(f"{root}.{label}" if root else str(label))
        ]

    def flatten(self, value: Any, where: str) -> list[Any]:
        """The leaves of a value of this structure; ArgumentError says at which argument (`where`) it differs."""
        if self.kind == "leaf":
            return [value]
        parts = self._parts(value, where)
        labels: Sequence[Key] = self.keys if self.kind in ("dict", "record") else range(len(parts))
        return [
            leaf
            for label, child, part in zip(labels, self.children, parts, strict=True)
            for leaf in child.flatten(part, f"{where}.{label}")
        ]

    def _parts(self, value: Any, where: str) -> list[Any]:
        if self.kind == "dict":
            if not isinstance(value, Mapping):
                raise _differs(where, f"a dict with the keys {_listed(self.keys)}", value)
            missing = [k for k in self.keys if k not in value]
            extra = [k for k in value if k not in self.keys]
            if missing or extra:
                faults = [f"{where} has no key {k!r}" for k in missing]
                faults += [f"{where} has an unknown key {k!r}" for k in extra]
                raise ArgumentError(faults, step=f"give {where} exactly the keys {_listed(self.keys)}")
            return [value[k] for k in self.keys]
        if self.kind == "record":
            try:
                return [getattr(value, str(k)) for k in self.keys]
            except AttributeError as fault:
                raise _differs(where, f"a {self.type} with the fields {_listed(self.keys)}", value) from fault
        wanted = list if self.kind == "list" else tuple
        if not isinstance(value, wanted) or len(value) != len(self.children):
            raise _differs(where, f"a {self.kind} of {len(self.children)}", value)
        return list(value)

    def rebuild(self, leaves: Iterator[Any]) -> Any:
        """The value made of the next leaves, in the structure's own classes where they are loaded in this process."""
        if self.kind == "leaf":
            return next(leaves)
        parts = [child.rebuild(leaves) for child in self.children]
        if self.kind == "list":
            return parts
        if self.kind == "tuple":
            return tuple(parts)
        fields = dict(zip(self.keys, parts, strict=True))
        if self.kind == "dict":
            return OrderedDict(fields) if self.type == ORDERED else fields
        build = _record_class(self.type or "")
        named = {str(key): part for key, part in fields.items()}
        if build is None:
            return Record(self.type or "", named)
        if hasattr(build, "n_sequence_fields"):
            # a structure sequence, like torch's result of x.max(dim), takes its fields as one sequence
            return build(parts)
        if dataclasses.is_dataclass(build):
            # fields that were None are not part of the structure
            named |= {f.name: None for f in dataclasses.fields(build) if f.init and f.name not in named}
        return build(**named)

    def to_json(self) -> Any:
        """Plain data for JSON: "*" for a leaf, else a small object."""
        if self.kind == "leaf":
            return "*"
        data: dict[str, Any] = {"kind": self.kind, "children": [child.to_json() for child in self.children]}
        if self.keys:
            data["keys"] = list(self.keys)
        if self.type is not None:
            data["type"] = self.type
        return data

    @staticmethod
    def from_json(data: Any) -> Tree:
        """Reads what to_json gave; ArtifactError when it is something else."""
        if data == "*":
            return LEAF
        if not isinstance(data, dict) or data.get("kind") not in ("dict", "list", "tuple", "record"):
            raise ArtifactError(f"a structure of arguments is malformed: {data!r}", step="save the program again")
        children = tuple(Tree.from_json(child) for child in data.get("children", []))
        keys = tuple(data.get("keys", ()))
        if data["kind"] in ("dict", "record") and len(keys) != len(children):
            counts = f"{len(keys)} keys and {len(children)} parts"
            raise ArtifactError(f"a structure of arguments has {counts}", step="save the program again")
        return Tree(data["kind"], keys, children, data.get("type"))


LEAF = Tree("leaf")


def _record_class(name: str) -> Callable[..., Any] | None:
    """The class a record names, only if its module is loaded already and it is a dataclass or a kind of named tuple.

    The name may come from a file: nothing is imported for it and nothing but such a class is called.
    """
    module, _, path = name.partition(":")
    found: Any = sys.modules.get(module)
    for part in path.split("."):
        found = getattr(found, part, None)
    if not isinstance(found, type):
        return None
    is_named_tuple = issubclass(found, tuple) and (hasattr(found, "_fields") or hasattr(found, "n_sequence_fields"))
    return found if dataclasses.is_dataclass(found) or is_named_tuple else None


def _differs(where: str, wanted: str, value: Any) -> ArgumentError:
    size = f" of {len(value)}" if isinstance(value, (list, tuple)) else ""
    return ArgumentError(
        f"{where} is a {type(value).__name__}{size}, compiled for {wanted}",
        step=f"pass {where} in the structure of the example it was compiled with",
    )


def _listed(keys: Sequence[Key]) -> str:
    return ", ".join(repr(k) for k in keys) or "(none)"
