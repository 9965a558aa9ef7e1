"""The Python code that a module's forward can reach, as hashes by name: what must be unchanged for a capture to be so.

Code is read as it is loaded, not from files, so that a method replaced at run time is another one. What a function
reaches is decided by names: the globals that it reads, and every method or module attribute of any name that occurs in
some reached function, whichever object it is asked of. That is more than a call runs, and never less, but for names
that are put together while it runs.
"""

from __future__ import annotations

import builtins
import functools
import hashlib
import logging
import re
import sys
import threading
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from enum import Enum
from pathlib import Path
from typing import Any, Final

_PLAIN: Final = (bool, int, float, complex, str, bytes, type(None), type(Ellipsis), range, slice)
_LOCK: Final = type(threading.Lock())
# what runs of itself when an object is made, called or asked for something
_IMPLIED: Final = ("__call__", "forward")
# objects that decide nothing of what is computed, or only what other factors hold already
# what loads and runs models, and what no forward of theirs calls: read one function deep
_AROUND: Final = (
    "transformers.utils.hub", "transformers.utils.logging", "transformers.utils.import_utils",
    "transformers.generation", "transformers.core_model_loading", "transformers.quantizers", "transformers.trainer",
)  # fmt: skip
# made anew in every process from what the object holds beside it
_DERIVED: Final = ("_original_object_hash",)
_INERT: Final = (logging.Logger, _LOCK, type(threading.RLock()), threading.local, re.Pattern, Path, types.GenericAlias)


class UnprovedError(Exception):
    """Something that decides what a model computes cannot be told apart from what it was before; says what."""


class Reached:
    """What is reached from some functions and classes. code: the hash of each function, class or number by its name.

    roots: the top-level packages whose functions are followed; others, torch's among them, are read one function deep.
    """

    def __init__(self, roots: Iterable[str]) -> None:
        self.roots = frozenset(roots)
        self.code: dict[str, str] = {}
        self._names: set[str] = {*_IMPLIED}
        self._fresh: list[str] = [*_IMPLIED]
        # what has attributes that functions ask for by name
        self._holders: list[tuple[str, Mapping[str, Any]]] = []
        self._seen: dict[int, Any] = {}
        self._pending: list[Callable[[], None]] = []
        # several functions may go by one name: what decorates, once for each that it decorates
        self._versions: dict[str, set[str]] = {}

    def settle(self) -> dict[str, str]:
        """Follows everything that is reached, and gives `code`. Raises UnprovedError."""
        while self._pending or self._fresh:
            while self._pending:
                self._pending.pop()()
            names, self._fresh = self._fresh, []
            for label, attributes in list(self._holders):
                for name in names:
                    if name in attributes:
                        self._attribute(label, name, attributes[name])
        return {**self.code, **{name: _digest(sorted(found)) for name, found in self._versions.items()}}

    # --- values ---------------------------------------------------------------------------------------------------

    def value(self, found: Any, place: str) -> Any:
        """A value as plain data: equal data for values that a model cannot tell apart. place: what an error says."""
        if isinstance(found, Enum):
            return ["enum", _name(type(found)), found.name]
        if type(found) in _PLAIN:
            return [type(found).__name__, repr(found)]
        if isinstance(found, _PLAIN):
            return [_name(type(found)), repr(found)]
        if isinstance(found, (list, tuple)):
            return [_name(type(found)), *(self.value(v, f"{place}[{i}]") for i, v in enumerate(found))]
        if isinstance(found, (set, frozenset)):
            return [_name(type(found)), *sorted(repr(self.value(v, place)) for v in found)]
        if isinstance(found, (dict, types.MappingProxyType)):
            pairs = ((self.value(k, place), self.value(v, f"{place}[{k!r}]")) for k, v in found.items())
            return [_name(type(found)), *([k, v] for k, v in pairs)]
        return self._object(found, place)

    def _object(self, found: Any, place: str) -> Any:
        import torch

        if isinstance(found, (torch.dtype, torch.device, torch.layout, torch.memory_format, torch.Size)):
            return ["torch", str(found)]
        if isinstance(found, torch.Tensor):
            raise UnprovedError(f"{place} is a tensor that is neither a parameter nor a buffer")
        if isinstance(found, type):
            return self.kind(found)
        of = _function_of(found)
        if of is not None:
            return self.function(of)
        if isinstance(found, functools.partial):
            parts = (found.func, found.args, found.keywords)
            return ["partial", *(self.value(part, place) for part in parts)]
        if isinstance(found, types.MethodType):
            return ["method", self.value(found.__func__, place), self.value(found.__self__, place)]
        if isinstance(found, types.ModuleType):
            self._module(found)
            return ["module", found.__name__]
        if isinstance(found, ContextVar):
            return ["context", found.name, self.value(found.get(None), place)]
        if isinstance(found, _INERT) or type(found) is object or _is_typing(found):
            return ["inert", _name(type(found))]
        return self._record(found, place)

    def _record(self, found: Any, place: str) -> Any:
        """An object by its class and attributes; those of other libraries by their class and name alone."""
        kind = type(found)
        root = kind.__module__.partition(".")[0]
        if root in ("torch", "tilewright", "builtins", "_thread", "functools", "operator", "numpy", "weakref"):
            told = getattr(found, "__qualname__", None) or getattr(found, "__name__", None)
            if told is None and root not in ("torch", "_thread", "weakref"):
                raise UnprovedError(f"{place} is a {_name(kind)}")
            return ["foreign", _name(kind), str(getattr(found, "__module__", "")), str(told)]
        if id(found) in self._seen:
            return ["again", _name(kind)]
        self._seen[id(found)] = found
        attributes = dict(getattr(found, "__dict__", {}))
        for slot in (s for base in kind.__mro__ for s in _slots(base)):
            if hasattr(found, slot):
                attributes[slot] = getattr(found, slot)
        return [
            self.kind(kind),
            *([n, self.value(held, f"{place}.{n}")] for n, held in sorted(attributes.items()) if n not in _DERIVED),
        ]

    # --- code -----------------------------------------------------------------------------------------------------

    def kind(self, found: type) -> Any:
        """A class: its methods and constants count as far as functions ask for them by name."""
        for base in found.__mro__:
            if id(base) in self._seen or base is object:
                continue
            self._seen[id(base)] = base
            label = _name(base)
            self.code[f"{label}.__mro__"] = " ".join(_name(b) for b in base.__mro__)
            if self._follows(base.__module__) or issubclass(base, _module_class()):
                self._holders.append((label, vars(base)))
                dunders = [n for n in vars(base) if n in self._names or _is_implied(n, vars(base)[n])]
                self._pending += [functools.partial(self._attribute, label, n, vars(base)[n]) for n in dunders]
        return ["class", _name(found)]

    def function(self, found: types.FunctionType) -> Any:
        """A function: its code, defaults and closure, and where it is followed, what its names stand for."""
        label = _name(found)
        if id(found) in self._seen:
            return ["function", label]
        self._seen[id(found)] = found
        self._pending.append(functools.partial(self._read, found, label))
        return ["function", label]

    def _read(self, found: types.FunctionType, label: str) -> None:
        root = (found.__module__ or "").partition(".")[0]
        if root == "tilewright":
            # the package's own sources are a factor
            return
        digest = hashlib.sha256(repr(_code(found.__code__)).encode())
        if self._follows(found.__module__ or ""):
            held = (found.__defaults__, found.__kwdefaults__)
            digest.update(repr(self.value(held, f"a default of {label}")).encode())
            for name, cell in zip(found.__code__.co_freevars, found.__closure__ or (), strict=True):
                try:
                    digest.update(repr(self.value(cell.cell_contents, f"{name} in {label}")).encode())
                except ValueError:
                    digest.update(b"empty")
            self._follow(found, label)
        self._versions.setdefault(label, set()).add(digest.hexdigest())

    def _follows(self, module: str) -> bool:
        return module.partition(".")[0] in self.roots and not module.startswith(_AROUND)

    def _follow(self, found: types.FunctionType, label: str) -> None:
        for name in sorted(_names(found.__code__)):
            if name in found.__globals__:
                held = found.__globals__[name]
                if not isinstance(held, types.ModuleType):
                    place = f"{found.__module__}.{name}"
                    if place not in self.code:
                        self.code[place] = "..."
                        self.code[place] = _digest(self.value(held, place))
                else:
                    self._module(held)
            elif not hasattr(builtins, name):
                self._ask(name)
            if name not in self._names:
                self._ask(name)

    def _ask(self, name: str) -> None:
        if name not in self._names:
            self._names.add(name)
            self._fresh.append(name)

    def _module(self, found: types.ModuleType) -> None:
        """A Python module that a function names: its attributes count as far as functions ask for them."""
        root = found.__name__.partition(".")[0]
        if id(found) in self._seen or not (root == "torch" or self._follows(found.__name__)):
            return
        if not hasattr(found, "__file__"):
            return
        self._seen[id(found)] = found
        attributes = vars(found)
        if root == "torch":
            attributes = {n: v for n, v in attributes.items() if isinstance(v, types.FunctionType)}
        self._holders.append((found.__name__, attributes))
        self._pending += [
            functools.partial(self._attribute, found.__name__, n, attributes[n])
            for n in sorted(self._names & attributes.keys())
        ]

    def _attribute(self, label: str, name: str, held: Any) -> None:
        place = f"{label}.{name}"
        functions = _functions_in(held)
        if functions is None:
            if place not in self.code and not isinstance(held, types.ModuleType):
                self.code[place] = "..."
                self.code[place] = _digest(self.value(held, place))
            elif isinstance(held, types.ModuleType):
                self._module(held)
            return
        # an attribute is also which function it is
        self.code.setdefault(f"{place} is", " ".join(_name(f) for f in functions))
        for function in functions:
            self.function(function)


def source_files(kinds: Iterable[type]) -> dict[str, str]:
    """The hash of the file of each Python module that classes come from; torch's are told by its version."""
    found = {}
    for name in sorted({kind.__module__ for kind in kinds if kind.__module__.partition(".")[0] != "torch"}):
        file = getattr(sys.modules.get(name), "__file__", None)
        if file is not None and Path(file).is_file():
            found[name] = hashlib.sha256(Path(file).read_bytes()).hexdigest()
    return found


def _functions_in(held: Any) -> list[types.FunctionType] | None:
    """The functions behind an attribute of a class: of a method, a property; None where it is something else."""
    if isinstance(held, (staticmethod, classmethod)):
        held = held.__func__
    if isinstance(held, property):
        return [f for f in map(_function_of, (held.fget, held.fset)) if f is not None]
    if isinstance(held, functools.cached_property):
        held = held.func
    found = _function_of(held)
    return None if found is None else [found]


def _function_of(held: Any) -> types.FunctionType | None:
    """The Python function that something callable is, or is a cache in front of."""
    while isinstance(held, functools._lru_cache_wrapper):
        held = held.__wrapped__
    return held if isinstance(held, types.FunctionType) else None


def _names(code: types.CodeType) -> set[str]:
    """The names in a function and those inside it, and its words, which `getattr` may be asked with."""
    found = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            found |= _names(constant)
        elif isinstance(constant, str) and constant.isidentifier():
            found.add(constant)
    return found


def _code(code: types.CodeType) -> Any:
    """All of a code object; its place, too, because programs say the line of each operator."""
    constants = [_code(c) if isinstance(c, types.CodeType) else _constant(c) for c in code.co_consts]
    return (
        code.co_filename, code.co_firstlineno, code.co_linetable, code.co_code, code.co_exceptiontable, constants,
        code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars, code.co_flags, code.co_argcount,
        code.co_kwonlyargcount, code.co_posonlyargcount,
    )  # fmt: skip


def _constant(value: Any) -> Any:
    if isinstance(value, frozenset):
        return sorted(map(repr, value))
    return [_constant(v) for v in value] if isinstance(value, tuple) else (type(value).__name__, repr(value))


def _is_implied(name: str, held: Any) -> bool:
    """Whether Python calls a method without naming it."""
    return name.startswith("__") and name.endswith("__") and _functions_in(held) is not None


def _is_typing(found: Any) -> bool:
    if type(found).__module__ in ("typing", "typing_extensions"):
        return True
    return isinstance(found, (typing.TypeVar, types.UnionType))


def _slots(base: type) -> tuple[str, ...]:
    slots = vars(base).get("__slots__", ())
    listed = (slots,) if isinstance(slots, str) else tuple(slots)
    return tuple(s for s in listed if s not in ("__dict__", "__weakref__"))


def _name(found: Any) -> str:
    return f"{found.__module__}.{found.__qualname__}"


def _digest(data: Any) -> str:
    text = repr(data)
    return text if len(text) <= 60 else hashlib.sha256(text.encode()).hexdigest()


@functools.cache
def _module_class() -> type:
    import torch

    return torch.nn.Module
