"""Code as it is loaded: whose it is, what it consists of, and what its names are."""

from __future__ import annotations

import dis
import functools
import hashlib
import importlib.util
import marshal
import operator
import os
import string
import sys
import types
import weakref
from collections.abc import Iterator
from itertools import pairwise
from pathlib import PurePath
from typing import Any, Final

# These may also be installed where they are written; "python" is the standard library.
_PACKAGES: Final = ("torch", "transformers", "tilewright")
_IMPORT: Final = dis.opmap["IMPORT_NAME"]
_MATCHES: Final = dis.opmap["MATCH_CLASS"]  # with the number of patterns that have no name


def words(text: str) -> frozenset[str]:
    """The words of a text."""
    return frozenset(text.split())


# What users' code may name besides its own and torch's: nothing that looks anything up by a name made while it runs,
# that reads files, clocks, the environment or the machine, or that draws numbers.
PURE_BUILTINS: Final = words(
    "abs all any bool bytes callable classmethod complex dict divmod enumerate filter float frozenset int "
    "isinstance issubclass iter len list map max min next object pow print property range repr reversed "
    "round set slice sorted staticmethod str sum super tuple type zip Exception AssertionError "
    "AttributeError IndexError KeyError NotImplementedError RuntimeError StopIteration TypeError "
    "ValueError ZeroDivisionError NotImplemented Ellipsis __name__"
)
_PURE_MODULES: Final = words(
    "__future__ _abc _collections _collections_abc _functools _typing _warnings abc cmath collections "
    "collections.abc contextlib copy dataclasses enum functools itertools logging math numbers re string "
    "textwrap types typing typing_extensions warnings"
)
_DUNDERS: Final = words(
    "__init__ __new__ __call__ __class__ __name__ __qualname__ __doc__ __enter__ __exit__ __len__ "
    "__iter__ __next__ __bool__ __post_init__ __class_getitem__"
)
# names of torch that answer from a file or from the process rather than from what they are given
_STATEFUL: Final = words(
    "load from_file hub environ getenv get_num_threads get_num_interop_threads initial_seed seed "
    "get_rng_state default_generator Generator backends cuda accelerator mps xpu _C fill_uninitialized_memory "
    "is_anomaly_enabled is_anomaly_check_nan_enabled is_warn_always_enabled get_deterministic_debug_mode "
    "is_deterministic_algorithms_warn_only_enabled getLogger"
)


@functools.cache
def _folders() -> dict[str, str]:
    loaded = ((name, sys.modules.get(name)) for name in _PACKAGES)
    found = {name: str(module.__file__) for name, module in loaded if module is not None}
    return {name: os.path.dirname(file) + os.sep for name, file in (*found.items(), ("python", os.__file__))}


@functools.cache
def _owner_of_file(file: str) -> str:
    if file.startswith("<frozen "):
        return "python"
    owner = next((name for name, folder in _folders().items() if file.startswith(folder)), "")
    parts = PurePath(file).parts
    installed = [i for i, part in enumerate(parts[:-1]) if part in ("site-packages", "dist-packages")]
    return parts[installed[-1] + 1].partition(".")[0] if installed and owner in ("", "python") else owner


def owner_of(found: types.FunctionType | types.ModuleType) -> str:
    """Whose code something is: the name of an installed package, python, or "" of users.

    A function's is told by the file that its code comes from, since decorators give functions other names.
    """
    if isinstance(found, types.FunctionType):
        file = found.__code__.co_filename
        if not file.startswith("<string"):
            return _owner_of_file(file)
        # generated: of the module that had it made, or a method of a named tuple, which can ask for nothing
        space = found.__globals__
        return _owner_of_file(str(space.get("__file__", ""))) if space.get("__builtins__") else "python"
    file = getattr(found, "__file__", None) or ""
    if os.path.isabs(file):
        return _owner_of_file(file)
    root = found.__name__.partition(".")[0]
    return root if root in _PACKAGES else "python" if root in sys.stdlib_module_names else ""


def owner_of_named(module: str | None) -> str:
    """Whose code a module of this name is; a user's where none is loaded."""
    found = sys.modules.get(module or "")
    return "" if not isinstance(found, types.ModuleType) else owner_of(found)


def is_pure(module: str) -> bool:
    """Whether users' code may name a module of the standard library, or what is of it."""
    return module in _PURE_MODULES or module == "builtins"


# Code never changes, and torch's is asked for in every compilation. By identity: equal code may lie elsewhere.
_DIGESTS: Final[dict[int, tuple[weakref.ref[types.CodeType], str]]] = {}


def digest_of(code: types.CodeType) -> str:
    """The sha256 of all of a code object; its place, too, because programs say the line of each operator."""
    known = _DIGESTS.get(id(code))
    if known is not None and known[0]() is code:
        return known[1]
    # the second version of the format knows no references, which depend on who else holds an object
    digest = hashlib.sha256(marshal.dumps(_ordered(code), 2)).hexdigest()
    _DIGESTS[id(code)] = weakref.ref(code), digest
    return digest


def _ordered(value: Any) -> Any:
    """A code object without sets among its constants: their order differs between processes."""
    if isinstance(value, types.CodeType):
        constants = tuple(map(_ordered, value.co_consts))
        same = all(a is b for a, b in zip(constants, value.co_consts, strict=True))
        return value if same else value.replace(co_consts=constants)
    if isinstance(value, frozenset):
        return ("frozenset", *sorted(map(repr, value)))
    if isinstance(value, tuple):
        parts = tuple(map(_ordered, value))
        return value if all(a is b for a, b in zip(parts, value, strict=True)) else parts
    return value


def codes_in(code: types.CodeType) -> Iterator[types.CodeType]:
    """A function's code and that of the functions inside it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from codes_in(constant)


def names_in(code: types.CodeType) -> set[str]:
    """The names in a function and those inside it, and its words, which `getattr` may be asked with."""
    found: set[str] = set()
    for inner in codes_in(code):
        found.update(inner.co_names)
        # class patterns have the attributes that they ask for in a tuple
        words = (w for c in inner.co_consts for w in (c if isinstance(c, tuple) else (c,)))
        found.update(w for w in words if isinstance(w, str) and w.isidentifier())
    return found


def imports_in(function: types.FunctionType) -> Iterator[str]:
    """The modules that a function imports where it runs."""
    package = str(function.__globals__.get("__package__") or "")
    for code in codes_in(function.__code__):
        if _IMPORT not in code.co_code[::2]:
            continue
        steps = list(dis.get_instructions(code))
        for i, step in enumerate(steps):
            if step.opname == "IMPORT_NAME":
                level, name = steps[i - 2].argval, str(step.argval)
                yield importlib.util.resolve_name("." * level + name, package) if level else name


def unprovable_name(function: types.FunctionType, builds: frozenset[str] = frozenset()) -> str | None:
    """A name in a user's function by which it may reach what names do not tell.

    builds: the names of a tile builder's methods, where the function builds a kernel: it asks the builder for them,
    unless it names a module that has them, too.
    """
    held, builtin = function.__globals__, vars(sys.modules["builtins"])
    modules = [m for n in names_in(function.__code__) if isinstance(m := held.get(n), types.ModuleType)]
    stateful = _STATEFUL - {name for name in builds if not any(hasattr(m, name) for m in modules)}
    for code in codes_in(function.__code__):
        loaded = {step.argval for step in dis.get_instructions(code) if step.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
        impure = {n for n in loaded if n in builtin and n not in held and n not in PURE_BUILTINS}
        for name in code.co_names:
            dunder = name.startswith("__") and name.endswith("__")
            if name in impure or name in stateful or (dunder and name not in _DUNDERS and not hasattr(operator, name)):
                return name
        steps = list(dis.get_instructions(code))
        if any(step.opcode == _MATCHES and step.arg for step in steps):
            return "__match_args__"
        for before, step in pairwise(steps):
            if step.argval in ("format", "format_map") and not _is_plain_format(before):
                return str(step.argval)
    return None


def _is_plain_format(step: dis.Instruction) -> bool:
    """Whether a step loads a text that, as a format, asks for no attribute and no item of what it is given."""
    if step.opname != "LOAD_CONST" or not isinstance(step.argval, str):
        return False
    try:
        fields = [field for _, field, _, _ in string.Formatter().parse(step.argval) if field is not None]
    except ValueError:
        return False
    return not any("." in field or "[" in field for field in fields)
