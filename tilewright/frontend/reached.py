"""What a module's forward can reach, as hashes by name: what must be unchanged for a capture to be so.

Everything is read as it is loaded, not from files: a function that was replaced is another one, and a file that was
edited counts from when it is imported. What is read depends on whose code it is, told by the file it comes from.

- Users' code (all that is not of the packages below) is followed: each function by its code, defaults, closure and
  attributes, the globals that it names and what these hold, the modules that it names or imports. Numbers, words and
  containers count by value, other objects by their class and attributes. Where it names what could look beyond that
  (getattr, open, os, random, numpy, ...), or holds what cannot be told (a tensor, an array, a generator), the model is
  not proved unchanged.
- transformers' code and that of other installed packages with classes in the model is followed in the same way, but
  trusted: what it looks up by other means than names is taken to be the same. What loads and trains models is read
  one function deep.
- torch's: all functions, classes and builtins of the modules that a forward calls are what they were, by the code of
  each. Other functions of torch, of the standard library and of what transformers uses count by their own code where
  they are named.

An attribute counts when its name occurs in some function that is followed, whichever object it is asked of.
"""

from __future__ import annotations

import abc
import functools
import hashlib
import inspect
import logging
import re
import sys
import threading
import types
import typing
from abc import ABCMeta
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from enum import Enum
from pathlib import PurePath
from typing import Any, Final

from tilewright.frontend import library_operators
from tilewright.frontend.loaded_code import (
    PURE_BUILTINS,
    digest_of,
    imports_in,
    is_pure,
    names_in,
    owner_of,
    owner_of_named,
    unprovable_name,
)

_PLAIN: Final = (bool, int, float, complex, str, bytes, type(None), type(Ellipsis), type(NotImplemented), range, slice)
_CONTAINERS: Final = (list, tuple, set, frozenset, dict, types.MappingProxyType)
# what is written in C and has no state of its own: what it is called, and of what, is what it is
_BUILTINS: Final = (
    types.BuiltinFunctionType, types.MethodDescriptorType, types.WrapperDescriptorType, types.MethodWrapperType,
    types.ClassMethodDescriptorType, types.GetSetDescriptorType, types.MemberDescriptorType,
)  # fmt: skip
# what runs of itself when an object is made, called or asked for something
_IMPLIED: Final = ("__call__", "forward")
# what loads and runs models, and what no forward of theirs calls: read one function deep
_AROUND: Final = (
    "transformers.utils.hub", "transformers.utils.logging", "transformers.utils.import_utils",
    "transformers.generation", "transformers.core_model_loading", "transformers.quantizers", "transformers.trainer",
    "transformers.models.auto",
)  # fmt: skip
# what tells of the process or the machine, or is told for all of it
_OF_THE_PROCESS: Final = ("torch.backends", "torch.cuda", "torch.accelerator", "torch.utils.deterministic", "torch._C")
# made in every process from what counts beside it; the others list what all classes that were loaded or made say
_DERIVED: Final = ("_original_object_hash", "_CAN_RECORD_REGISTRY", "_registered_model_output_types")
# objects that decide nothing of what is computed
_INERT: Final = (logging.Logger, type(threading.Lock()), type(threading.RLock()), types.GenericAlias, types.UnionType)
# classes of the standard library that keep nothing of an instance where its attributes do not show it
_OPEN: Final = (*_PLAIN, *_CONTAINERS, object, OrderedDict, Exception, BaseException)
_OPEN_MODULES: Final = ("abc", "typing", "enum", "collections.abc", "contextlib", "dataclasses")
_TORCH: Final = (
    "torch", "torch.functional", "torch._tensor", "torch._VF", "torch._C._nn", "torch._C._linalg", "torch._C._fft",
    "torch._C._special", "torch.linalg", "torch.fft", "torch.special", "torch.nn", "torch.nn.functional",
    "torch.nn.parameter", "torch._jit_internal", "torch.overrides",
)  # fmt: skip


class UnprovedError(Exception):
    """Something that decides what a model computes cannot be told apart from what it was before; says what."""


class Reached:
    """What is reached from some functions and classes. code: the hash of each function, class or number by its name."""

    def __init__(self, packages: Iterable[str]) -> None:
        self._packages = {"", *packages}
        self.code: dict[str, str] = {}
        # the operators of libraries among it, as "mylib::swiglu"
        self.operators: set[str] = set()
        # functions that build kernels with tiles, by their ids
        self._kernels: dict[int, types.FunctionType] = {}
        self._names: set[str] = {*_IMPLIED}
        self._fresh: list[str] = [*_IMPLIED]
        # what has attributes that functions ask for by name, and whether a user wrote it
        self._holders: list[tuple[str, Mapping[str, Any], bool]] = []
        # what is known of each object, which is held so that no other has its id
        self._seen: dict[int, tuple[Any, Any]] = {}
        self._open: dict[int, int] = {}
        self._pending: list[Callable[[], None]] = []
        self._users_names: set[str] = set()
        # whether a user's code asks, which may name less of the standard library
        self._strict = True

    def settle(self) -> dict[str, str]:
        """Follows everything that is reached, and gives `code`. Raises UnprovedError."""
        self._pending.append(self._torch)
        while self._pending or self._fresh or self._operators_named():
            while self._pending:
                self._pending.pop()()
            names, self._fresh = self._fresh, []
            for label, attributes, strict in list(self._holders):
                for name in names:
                    if name in attributes:
                        self._attribute(label, name, attributes[name], strict)
            for _, attributes, _ in list(self._holders):
                for name in sorted(self._users_names & attributes.keys()):
                    if isinstance(attributes[name], types.ModuleType):
                        self._strict = True
                        self._module(attributes[name])
        return self.code

    def _operators_named(self) -> bool:
        """Takes in the operators that code asks torch.ops for; whether there were others than before."""
        fresh = [name for name in library_operators.named_by(self._names) if name not in self.operators]
        for name in fresh:
            self._operator(name)
        return bool(fresh)

    # --- values ---------------------------------------------------------------------------------------------------

    def value(self, found: Any, place: str) -> Any:
        """A value as plain data: equal data for values that a model cannot tell apart. place: what an error says."""
        kind = type(found)
        if kind in _PLAIN:
            return [kind.__name__, repr(found)]
        if isinstance(found, Enum) or (hasattr(kind, "__members__") and not isinstance(found, type)):
            held = [self.value(found.value, place), *self._state(found, place)] if isinstance(found, Enum) else []
            return ["enum", self.kind(kind), found.name, *held]
        if isinstance(found, _CONTAINERS):
            return self._container(found, place)
        return self._object(found, place)

    def _container(self, found: Any, place: str) -> Any:
        if id(found) in self._open:
            return ["again", self._open[id(found)]]
        self._open[id(found)] = len(self._open)
        parts: Any = [self.kind(type(found))]
        if isinstance(found, (list, tuple)):
            base: Any = list if isinstance(found, list) else tuple
            parts += [self.value(v, f"{place}[{i}]") for i, v in enumerate(base.__iter__(found))]
        elif isinstance(found, (set, frozenset)):
            parts += sorted(repr(self.value(v, place)) for v in tuple(found))
        else:
            # not what a class of its own makes of it: some load what they list
            pairs = dict.items(found) if isinstance(found, dict) else found.items()
            parts += [[self.value(k, place), self.value(v, f"{place}[{k!r}]")] for k, v in pairs]
        if isinstance(found, defaultdict):
            parts.append(self.value(found.default_factory, place))
        if getattr(found, "__dict__", None):
            parts.append(self._state(found, place))
        del self._open[id(found)]
        return parts

    def _object(self, found: Any, place: str) -> Any:
        import torch

        if isinstance(found, (torch.dtype, torch.device, torch.layout, torch.memory_format)):
            return ["torch", str(found)]
        if isinstance(found, torch.Tensor):
            raise UnprovedError(f"{place} is a tensor that is neither a parameter nor a buffer")
        if isinstance(found, type):
            return self.kind(found)
        of = _function_of(found)
        if of is not None:
            if of is not found and owner_of(of) == "":
                raise UnprovedError(f"{place} remembers its results")
            return self.function(of)
        if isinstance(found, _BUILTINS):
            return self._builtin(found, place)
        operator = library_operators.name_of(found)
        if operator is not None:
            return self._operator(operator)
        if isinstance(found, (staticmethod, classmethod)):
            return [type(found).__name__, self.value(found.__func__, place)]
        if isinstance(found, property):
            return ["property", *(self.value(f, place) for f in (found.fget, found.fset))]
        if isinstance(found, functools.cached_property):
            return ["property", self.value(found.func, place)]
        if isinstance(found, functools.partial):
            return ["partial", *(self.value(part, place) for part in (found.func, found.args, found.keywords))]
        if isinstance(found, types.MethodType):
            return ["method", self.value(found.__func__, place), self.value(found.__self__, place)]
        if isinstance(found, types.ModuleType):
            self._module(found)
            if isinstance(found, torch._ops._OpNamespace):
                self._ask({found.name})
            return ["module", found.__name__]
        if isinstance(found, types.GeneratorType) and inspect.getgeneratorstate(found) == inspect.GEN_CREATED:
            return ["generator", digest_of(found.gi_code), self.value(inspect.getgeneratorlocals(found), place)]
        if isinstance(found, ContextVar):
            return ["context", found.name, self.value(found.get(None), place)]
        if isinstance(found, (PurePath, re.Pattern)):
            return [type(found).__name__, str(found)]
        if isinstance(found, logging.Logger) and self._strict:
            return ["logger", found.name, found.getEffectiveLevel(), found.disabled, found.manager.disable]
        if isinstance(found, _INERT) or type(found) is object or _is_typing(found):
            return ["inert", _name(type(found))]
        return self._record(found, place)

    def _operator(self, name: str) -> Any:
        """An operator, by its name where it is torch's, else by what its library and others have said of it."""
        if name.partition("::")[0] not in library_operators.KNOWN_LIBRARIES and name not in self.operators:
            self.operators.add(name)
            told = library_operators.described(name)
            if told.unknown is not None:
                raise UnprovedError(told.unknown)
            asked, self._strict = self._strict, False
            functions = self.value(told.functions, f"what is registered of {name}")
            self._kernels |= _functions(part for sources in told.kernels for part in sources)
            kernels = self.value(told.kernels, f"the kernel of {name}")
            self._strict = asked
            self.code[f"operator {name}"] = _digest([told.facts, functions, kernels])
        return ["operator", name]

    def _builtin(self, found: Any, place: str) -> Any:
        of = getattr(found, "__self__", None)
        if isinstance(of, types.ModuleType):
            self._permit(of.__name__, f"{of.__name__}.{found.__name__}")
            of = None
        told = [type(found).__name__, str(getattr(found, "__module__", "")), found.__qualname__]
        return told if of is None else [*told, _name(of) if isinstance(of, type) else self.value(of, place)]

    def _record(self, found: Any, place: str) -> Any:
        """An object by its class and attributes, where nothing of it lies elsewhere."""
        kind = type(found)
        if id(found) in self._seen:
            return self._seen[id(found)][1]
        self._seen[id(found)] = found, ["again", len(self._seen)]
        for base in kind.__mro__:
            followed = owner_of_named(base.__module__) in {*self._packages, "torch"}
            if base not in _OPEN and base.__module__ not in _OPEN_MODULES and not (followed and _is_python(base)):
                raise UnprovedError(f"{place} is a {_name(kind)}")
        bases: tuple[Any, ...] = _PLAIN
        content = [base.__repr__(found) for base in bases if isinstance(found, base)]
        asked, self._strict = self._strict, self._strict or owner_of_named(kind.__module__) == ""
        told = [self.kind(kind), *content, *self._state(found, place)]
        self._strict = asked
        return told

    def _state(self, found: Any, place: str) -> list[Any]:
        attributes = dict(getattr(found, "__dict__", {}))
        for slot in (s for base in type(found).__mro__ for s in _slots(base)):
            if hasattr(found, slot):
                attributes[slot] = getattr(found, slot)
        return [[n, self.value(held, f"{place}.{n}")] for n, held in sorted(attributes.items()) if n not in _DERIVED]

    # --- code -----------------------------------------------------------------------------------------------------

    def kind(self, found: type) -> Any:
        """A class: its methods and constants count as far as functions ask for them by name."""
        self._permit(found.__module__, _name(found))
        metaclass: Any = type(found)
        for base in (*found.__mro__, *metaclass.__mro__):
            owner, label = owner_of_named(base.__module__), _name(base)
            if isinstance(base, ABCMeta):
                self.code[f"{label} registered"] = " ".join(self._registered(base))
            if id(base) in self._seen or owner not in self._packages:
                continue
            self._seen[id(base)] = base, ["class", label]
            self.code[f"{label}.__mro__"] = " ".join(_name(b) for b in base.__mro__)
            if not _is_around(base.__module__):
                self._hold(label, vars(base), owner == "", [n for n in vars(base) if _is_implied(n, vars(base)[n])])
        return ["class", _name(found)]

    def _registered(self, found: ABCMeta) -> list[str]:
        """The classes of what is followed that count as subclasses of an abstract one because they were registered."""
        dump: Any = abc._get_dump  # type: ignore[attr-defined]
        kinds = [kind for known in dump(found)[0] if (kind := known()) is not None]
        return sorted(_name(kind) for kind in kinds if owner_of_named(kind.__module__) in self._packages)

    def _hold(self, label: str, attributes: Mapping[str, Any], strict: bool, implied: list[str]) -> None:
        self._holders.append((label, attributes, strict))
        for name in sorted({*implied, *(self._names & attributes.keys())}):
            self._pending.append(functools.partial(self._attribute, label, name, attributes[name], strict))

    def function(self, found: types.FunctionType) -> Any:
        """A function: its code, defaults and closure, and where it is followed, what its names stand for."""
        label, owner = _name(found), owner_of(found)
        self._permit(str(found.__globals__.get("__name__")), label)
        if id(found) in self._seen:
            return self._seen[id(found)][1]
        self._seen[id(found)] = found, ["function", label, len(self._seen)]
        told: list[Any] = ["function", label]
        asked, self._strict = self._strict, self._strict or owner == ""
        if owner != "tilewright":
            # the package's own sources are a factor
            parts = [digest_of(found.__code__), self.value(found.__defaults__, f"a default of {label}")]
            parts.append(self.value(found.__kwdefaults__, f"a default of {label}"))
            for name, cell in zip(found.__code__.co_freevars, found.__closure__ or (), strict=True):
                parts.append(self.value(_content(cell), f"{name} in {label}"))
            if owner == "":
                parts.append(self.value(vars(found), f"an attribute of {label}"))
            told.append(_digest(parts))
        self._strict = asked
        self._seen[id(found)] = found, told
        if owner in self._packages and not _is_around(str(found.__globals__.get("__name__"))):
            self._pending.append(functools.partial(self._follow, found, label, owner == ""))
        return told

    def _follow(self, found: types.FunctionType, label: str, strict: bool) -> None:
        self._strict = strict
        names, held = names_in(found.__code__), found.__globals__
        if id(found) in self._kernels:
            self._kernels |= _functions(held[name] for name in names & held.keys())
        if strict:
            self._require_names(found, label)
            self._users_names |= names
        else:
            names -= {*_DERIVED}
        space = str(held.get("__name__"))
        for name in sorted(names & held.keys()):
            place = f"{space}.{name}"
            if (key := f"{place} for users" if strict else place) not in self.code:
                self.code[key] = "..."
                self.code[key] = _digest(self.value(held[name], place))
        self._ask(names)
        for name in imports_in(found):
            if name in sys.modules:
                self._module(sys.modules[name])
            elif strict:
                raise UnprovedError(f"{label} imports {name} when it runs")

    def _require_names(self, found: types.FunctionType, label: str) -> None:
        name = unprovable_name(found, _builders_names() if id(found) in self._kernels else frozenset())
        if name is not None:
            raise UnprovedError(f"{label} asks for {name}")
        module = sys.modules.get(str(found.__globals__.get("__name__")))
        if module is None or vars(module) is not found.__globals__:
            raise UnprovedError(f"{label} is of no module")

    def _ask(self, names: set[str]) -> None:
        self._fresh += sorted(names - self._names)
        self._names |= names

    def _module(self, found: types.ModuleType) -> None:
        """A Python module that a function names: its attributes count as far as functions ask for them."""
        owner = owner_of(found)
        self._permit(found.__name__, found.__name__)
        if self._strict and found.__name__.startswith(_OF_THE_PROCESS):
            raise UnprovedError(f"users' code asks for {found.__name__}")
        if owner == "" and (type(found) is not types.ModuleType or "__getattr__" in vars(found)):
            raise UnprovedError(f"{found.__name__} answers for names that it does not hold")
        if id(found) in self._seen or owner == "tilewright" or _is_around(found.__name__):
            return
        self._seen[id(found)] = found, None
        attributes = vars(found)
        if owner not in self._packages:
            attributes = {n: v for n, v in attributes.items() if isinstance(v, (types.FunctionType, *_BUILTINS))}
        self._hold(found.__name__, attributes, owner == "", [])

    def _permit(self, module: str, name: str) -> None:
        known = {*self._packages, "torch", "tilewright"}
        if self._strict and owner_of_named(module) not in known and not is_pure(module):
            raise UnprovedError(f"users' code asks for {name}")

    def _attribute(self, label: str, name: str, held: Any, strict: bool) -> None:
        self._strict, place = strict, f"{label}.{name}"
        if isinstance(held, types.ModuleType) and held.__name__ == place:
            # packages have those of their modules that anybody has loaded: they count where a user asks for them
            return
        if place not in self.code:
            self.code[place] = "..."
            self.code[place] = _digest(self.value(held, place))

    def _torch(self) -> None:
        """What torch's modules and classes hold that a forward calls; what is not torch's is followed."""
        import torch

        self._strict = False
        modules = [n for n in sorted(sys.modules) if n in _TORCH or n.startswith("torch.nn.modules")]
        spaces: dict[str, Mapping[str, Any]] = {name: vars(sys.modules[name]) for name in modules}
        for base in (torch.Tensor, torch._C.TensorBase, type(torch._C._VariableFunctions), torch.Size):
            spaces[_name(base)] = vars(base)
        for name in modules:
            kinds = [k for k in spaces[name].values() if isinstance(k, type) and k.__module__ == name]
            spaces |= {_name(k): vars(k) for k in kinds if _is_python(k)}
        spaces["builtins"] = {n: v for n, v in vars(sys.modules["builtins"]).items() if n in PURE_BUILTINS}
        spaces["math"] = vars(sys.modules["math"]) if "math" in sys.modules else {}
        for label, attributes in spaces.items():
            decisive = [(n, v) for n, v in sorted(attributes.items()) if _decides(f"{label}.{n}", v)]
            self.code[f"{label} as loaded"] = _digest([[n, self.value(v, f"{label}.{n}")] for n, v in decisive])


def _decides(place: str, held: Any) -> bool:
    """Whether a name in torch's modules stands for what a forward may call. Modules of a package come as they load."""
    if isinstance(held, types.ModuleType):
        return held.__name__ != place or sys.modules.get(place) is not held
    return callable(held) or isinstance(held, (staticmethod, classmethod, property))


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return "empty"


def _function_of(held: Any) -> types.FunctionType | None:
    """The Python function that something callable is, or is a cache in front of."""
    while isinstance(held, functools._lru_cache_wrapper):
        held = held.__wrapped__
    if not isinstance(held, types.FunctionType):
        return None
    # torch puts these in front of its own functions when its compiler is loaded, and they do nothing while it is not on
    within = dict(zip(held.__code__.co_freevars, held.__closure__ or (), strict=True)).get("fn")
    if within is not None and held.__code__.co_filename == _disabling():
        return _function_of(_content(within)) or held
    return held


@functools.cache
def _disabling() -> str:
    return str(getattr(sys.modules.get("torch._compile"), "__file__", ""))


def _functions(found: Iterable[Any]) -> dict[int, types.FunctionType]:
    return {id(part): part for part in found if isinstance(part, types.FunctionType)}


@functools.cache
def _builders_names() -> frozenset[str]:
    from tilewright.ir.tile.builder import KernelBuilder

    return frozenset(dir(KernelBuilder))


def _is_around(module: str) -> bool:
    return module.startswith(_AROUND)


def _is_implied(name: str, held: Any) -> bool:
    """Whether Python calls a method without naming it."""
    if isinstance(held, (staticmethod, classmethod)):
        held = held.__func__
    return name.startswith("__") and name.endswith("__") and _function_of(held) is not None


def _is_python(kind: type) -> bool:
    """Whether a class was written in Python alone: its instances hold no more than a dictionary and slots."""
    slots = sum(len(_slots(base)) for base in kind.__mro__)
    return "__module__" in vars(kind) and kind.__basicsize__ <= object.__basicsize__ + 8 * (slots + 2)


def _is_typing(found: Any) -> bool:
    return type(found).__module__ in ("typing", "typing_extensions") or isinstance(found, typing.TypeVar)


def _slots(base: type) -> tuple[str, ...]:
    slots = vars(base).get("__slots__", ())
    listed = (slots,) if isinstance(slots, str) else tuple(slots)
    return tuple(s for s in listed if s not in ("__dict__", "__weakref__"))


def _name(found: Any) -> str:
    return f"{found.__module__}.{found.__qualname__}"


def _digest(data: Any) -> str:
    text = repr(data)
    return text if len(text) <= 60 else hashlib.sha256(text.encode()).hexdigest()
