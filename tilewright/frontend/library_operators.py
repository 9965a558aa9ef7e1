"""Operators of torch.library as what a capture of them depends on: equal descriptions give equal graphs.

A capture asks an operator for its schema, for what it gives (its shape rule) and for what has been registered with
`tilewright.register_op`; its own implementation is not run. That counts by its own code alone, since people expect a
changed operator to be another one.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any, Final

from tilewright.frontend import custom_ops
from tilewright.frontend.loaded_code import digest_of, words
from tilewright.frontend.shape_rules import rule_of

# Operators of these libraries are lowered by this package alone, whose version and torch's are told elsewhere.
KNOWN_LIBRARIES: Final = ("aten", "prims", "tilewright", "transformers")
# torch's other libraries, which its version tells; words of theirs (linear, add, wait) are in everybody's code
_TORCHS: Final = words(
    "_c10d_functional _c10d_functional_autograd _dtensor _inductor_test _native _quantized _test c10d c10d_functional "
    "debug_mode_ops debugprims export flex_lib fsdp inductor inductor_prims mkl mkldnn mkldnn_prepacked onednn onnx "
    "onnx_symbolic prim profiler quantization quantized quantized_decomposed rngprims sparse static_runtime streams "
    "symm_mem"
)


@dataclass(frozen=True)
class Described:
    """facts: plain data. functions: what else decides a graph, to be followed. kernels: those that build kernels.

    unknown: what cannot be told, if any.
    """

    facts: list[Any]
    functions: list[Any]
    kernels: list[Any]
    unknown: str | None


def named_by(names: Collection[str]) -> list[str]:
    """The operators ("mylib::swiglu") that code with these names may ask torch.ops for."""
    import torch

    found: set[str] = set()
    for whole in torch._C._dispatch_get_all_op_names():
        library, _, rest = whole.partition("::")
        name = rest.partition(".")[0]
        if library in names and name in names and library not in KNOWN_LIBRARIES and library not in _TORCHS:
            found.add(f"{library}::{name}")
    return sorted(found)


def name_of(held: Any) -> str | None:
    """The name of an operator as an object that code may hold, "mylib::swiglu"; None for anything else."""
    import torch

    if isinstance(held, torch._library.custom_ops.CustomOpDef):
        return held._qualname
    if isinstance(held, torch._ops.OpOverload):
        return str(held._schema.name)
    return held._qualified_op_name if isinstance(held, torch._ops.OpOverloadPacket) else None


def described(name: str) -> Described:
    """What decides the graph of a call of an operator, all its overloads."""
    import torch

    library, _, rest = name.partition("::")
    packet = getattr(getattr(torch.ops, library), rest)
    facts: list[Any] = []
    functions: list[Any] = []
    kernels: list[Any] = []
    unknown = None
    for overload in packet.overloads():
        target = getattr(packet, overload)
        facts += [str(target._schema), sorted(map(str, target.tags))]
        rule = rule_of(target)
        has = functools.partial(torch._C._dispatch_has_kernel_for_dispatch_key, target.name())
        if rule is not None and rule is not True:
            functions.append(rule)
        # torch's version tells of its own, and what an operator was defined with of that
        is_told = library in _TORCHS or target.name() in torch._library.custom_ops.OPDEFS
        if not is_told and has("CompositeImplicitAutograd"):
            unknown = f"{name} is made of other operators, and torch does not say which"
        elif not is_told and (rule is True or (rule is None and has("CompositeExplicitAutograd"))):
            unknown = f"{name} has no shape rule in Python: torch.library.register_fake gives it one"
        # what is called in place of it while torch traces
        functions += [[str(key), function] for key, function in sorted(target.py_kernels.items(), key=str)]
        registered = custom_ops.registered(str(target))
        if registered is not None:
            functions.append([registered.reference, registered.shape])
            kernels.append(registered.sources)
    defined = torch._library.custom_ops.OPDEFS.get(name)
    if defined is not None:
        backends = [[str(device), f] for device, f in sorted(defined._backend_fns.items(), key=str)]
        facts.append([[device, _code(f, set())] for device, f in [["", defined._init_fn], *backends]])
    return Described(facts, functions, kernels, unknown)


def _code(held: Any, seen: set[int]) -> Any:
    """A function's own code, with that of functions that it has from a decorator."""
    if not isinstance(held, types.FunctionType):
        return f"{type(held).__module__}.{type(held).__qualname__}"
    if id(held) in seen:
        return "again"
    seen.add(id(held))
    return [digest_of(held.__code__), *(_code(part, seen) for part in _within(held))]


def _within(function: types.FunctionType) -> Iterable[Any]:
    for cell in function.__closure__ or ():
        try:
            if isinstance(cell.cell_contents, types.FunctionType):
                yield cell.cell_contents
        except ValueError:
            continue  # a name that has no value yet
