"""What the exporter raises, as one coded error in the user's words: their line, their dims' names, the way out."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

from tilewright.errors import CaptureError, Problem, SpecialisationError
from tilewright.frontend.examples import Example, Leaf
from tilewright.frontend.locations import of_node, of_traceback

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram

# What the exporter says about its own settings and internals, around what it says about the model.
_ADVICE: Final = re.compile(
    r"For more information, run with TORCH_LOGS=\S+|For extended logs .*?=\"[^\"]*\"|If you suspect the guard .*?=1"
    r"|For more debugging help, see \S+|For C\+\+ stack trace, run with \S+|\(Size-like symbols: [^)]*\)"
    r"|\(unhinted: [^()]*\([^()]*\)\)\.?|Caused by: \([^)]*\)|consider using data-dependent friendly APIs [^.]*\."
    r"|The following call raised this error: .*?(?=The error above|$)|The error above occurred when calling .*$"
)
# what a pytree does not know, as torch says it of an output
_STRANGER: Final = re.compile(r"Found <class '([^']+)'> in output, which is not a known type")
_DATA: Final = re.compile(r"data-dependent|DataDependent|PendingUnbacked|depends on the values of tensors")
_SYMBOL: Final = re.compile(r"\bs\d+\b")
_SIZES: Final = re.compile(r"\bs\d+\b|\b(?:shape|size|sizes|expand|expanded|broadcast)\b")
# an operator of a library, of which torch knows no more than how it is computed
_RULELESS: Final = re.compile(r"no fake impl registered for <CustomOpDef\((\w+::[\w.]+)\)>")
# what torch's parser of arguments refuses; a size in it is one only while it is traced
_CALL: Final = re.compile(r"^(?!.*\bSym)(\w+)\(\) (?:takes from \d+ to|received an invalid combination of arguments)")
_SOURCE: Final = re.compile(r"L((?:\['?\w+'?\])+)\.size\(\)\[(\d+)\]")

# what is left to say where nothing is known but torch's own words; where there is a model, `seen_in_eager` knows more
UNEXPLAINED: Final = "run the model on these example arguments eagerly; if that works, report the message above"


def capture_error(fault: Exception, example: Example, model: torch.nn.Module | None = None) -> CaptureError:
    """The exporter's failure with the user's line and dims and, for the known kinds, the way out.

    model: whose tensors may hold what the exporter's stand-ins for them lack.
    """
    text = " ".join(_ADVICE.sub(" ", " ".join(str(fault).split())).split())
    name = type(fault).__name__
    where = of_traceback(fault.__traceback__)
    node = getattr(fault, "node", None)
    if where is None and node is not None:
        where = of_node(node)
    problems: list[str | Problem] = []
    if stranger := _STRANGER.search(str(fault)):
        kind = stranger[1].rpartition(".")[2]
        text = f"the model gives a {kind}, which torch cannot take apart into tensors"
        step = f"return a dict, a tuple or a named tuple, or say how: torch.export.register_dataclass({kind})"
        return CaptureError(Problem(text, where=where), step=step)
    if ruleless := _ruleless(fault):
        text = f"torch does not know what {ruleless} gives without computing it: it has no shape rule"
        step = f'say how it is computed in torch: tw.register_op("{ruleless}", reference=f), with its arguments for f'
        return CaptureError(Problem(text, where=where), step=step)
    if "PendingUnbacked" in name:
        # torch's own words name its symbols alone
        name, text = "data-dependent size", "the size of a result depends on the values of tensors"
    if _DATA.search(f"{name} {text}"):
        step = "replace what depends on tensor values (.item(), if tensor:, nonzero) by tensor arithmetic"
    elif "Constraint" in text or "Constraint" in name:
        step = "narrow the dims that the message names, or leave them out of dims"
    elif _SIZES.search(text) and (partners := _partners(example)):
        step = _declare_too(example, partners)
        problems = [*_undeclared(partners)]
    elif isinstance(fault, AttributeError) and (owner := _holder(fault, example, model)):
        name, text = owner, f"has the attribute {fault.name} in Python alone: what a trace sees is its elements"
        step = f"keep it in an attribute of the module: self.{fault.name} = ..."
    elif isinstance(fault, TypeError) and (call := _CALL.search(str(fault))):
        given = "x.sort(dim=0, stable=True)" if "sort" in call[1] else f"{call[1]}(x, name=value)"
        step = f"correct the call, which torch refuses in eager, too; give arguments by name: {given}"
    else:
        step = UNEXPLAINED
    names = _names(fault.__traceback__, example)
    text = _SYMBOL.sub(lambda symbol: names.get(symbol[0], symbol[0]), text)
    return CaptureError([Problem(f"{name}: {text[:1500]}", where=where), *problems], step=step)


def seen_in_eager(fault: CaptureError, run: Callable[[], object]) -> CaptureError:
    """A failure that nothing is known of, and whether the model fails without a capture, too. run: calls the model."""
    if fault.step != UNEXPLAINED:
        return fault
    try:
        run()
    except Exception:  # noqa: BLE001 (whatever a model raises: it does not run on its arguments)
        step = "correct the arguments or the model: called on them without Tilewright, the model fails, too"
    else:
        step = "report the message above, or write that part differently: torch alone runs the model on these arguments"
    return CaptureError(fault.problems, step=step)


def _ruleless(fault: Exception) -> str | None:
    """The name of an operator of a library that has no shape rule, where that is the fault."""
    if found := _RULELESS.search(str(fault)):
        return found[1]
    name = str(getattr(fault, "func", "")) if type(fault).__name__ == "UnsupportedOperatorException" else ""
    namespace, _, rest = name.partition(".")
    return f"{namespace}::{rest.removesuffix('.default')}" if rest and namespace not in ("aten", "prims") else None


def shared_memory(fault: Exception, program: ExportedProgram) -> CaptureError | None:
    """The error for buffers that share memory and of which one is written, where that is what torch failed at.

    Torch runs such a program through a wrapper, and asserts that it has none.
    """
    if not isinstance(fault, AssertionError):
        return None
    held = {**program.state_dict, **{n: c for n, c in program.constants.items() if hasattr(c, "untyped_storage")}}
    names = {spec.arg.name: spec.target for spec in program.graph_signature.input_specs if spec.target in held}
    for node in program.graph.nodes:
        if not getattr(getattr(node.target, "_schema", None), "is_mutable", False) or not node.args:
            continue
        changed: Any = node.args[0]
        while getattr(changed, "op", None) == "call_function" and changed.args:
            changed = changed.args[0]
        one = names.get(getattr(changed, "name", None))
        shared = [n for n in names.values() if _one_memory(held[n], held[one])] if one else []
        if len(shared) > 1:
            whole, *views = sorted(shared, key=lambda n: -held[n].numel())
            text = f"{' and '.join(map(str, shared))} share memory, and the model writes to {one}"
            step = f"register {whole} alone and take the view in forward: self.{whole}[...] in place of self.{views[0]}"
            return CaptureError(Problem(text, where=of_node(node)), step=step)
    return None


def _one_memory(a: torch.Tensor, b: torch.Tensor) -> bool:
    return bool(a.untyped_storage()._cdata == b.untyped_storage()._cdata)


def _holder(fault: AttributeError, example: Example, model: torch.nn.Module | None) -> str | None:
    """The tensor whose Python attribute is missing from what stands for it in a trace; None for other attributes."""
    held = [] if model is None else [*model.named_parameters(), *model.named_buffers()]
    named = [*held, *((leaf.name, leaf.value) for leaf in example.leaves if leaf.is_tensor)]
    if not any("FakeTensor" in kind.__name__ for kind in type(fault.obj).__mro__):
        return None
    return next((name for name, value in named if fault.name in vars(value)), None)


def with_partners(fault: SpecialisationError, example: Example) -> SpecialisationError:
    """A dim that was fixed, with the undeclared axes of its size: an axis beside it that stays fixed fixes it, too."""
    partners = _partners(example)
    if not partners:
        return fault
    return SpecialisationError([*fault.problems, *_undeclared(partners)], step=_declare_too(example, partners))


def _undeclared(partners: Mapping[tuple[Leaf, int], str]) -> list[str]:
    return [
        f"{leaf.name} axis {axis} is not declared in dims, but has the example's size of {dim}"
        for (leaf, axis), dim in partners.items()
    ]


def _declare_too(example: Example, partners: Mapping[tuple[Leaf, int], str]) -> str:
    return f"if these vary together, declare them too: {_dims_line(example, partners)}"


def _partners(example: Example) -> dict[tuple[Leaf, int], str]:
    """The axes that no dim was declared for and that have the size which the user's example has in a declared one."""
    sizes: dict[int, str] = {}
    for dim, size in example.given.items():
        sizes.setdefault(size, dim)
    return {
        (leaf, axis): sizes[int(size)]
        for leaf in example.leaves
        if leaf.is_tensor
        for axis, size in enumerate(leaf.value.shape)
        if (not leaf.axes or leaf.axes[axis] is None) and int(size) in sizes
    }


def _dims_line(example: Example, partners: Mapping[tuple[Leaf, int], str]) -> str:
    """The `dims=` argument that declares the partners beside what is declared: each Dim once, then by name."""
    if any("." in leaf.name for leaf in example.leaves):
        # parts of nested arguments are declared in the arguments' own structure
        return ", ".join(f"{leaf.name} axis {axis} as {dim}" for (leaf, axis), dim in partners.items())
    left = {
        dim.name: f'tw.Dim("{dim.name}", {dim.min}{"" if dim.max is None else f", {dim.max}"})' for dim in example.dims
    }
    entries = []
    for leaf in example.leaves:
        names = {axis: dim.name for axis, dim in enumerate(leaf.axes) if dim is not None}
        names |= {axis: dim for (other, axis), dim in partners.items() if other is leaf}
        listed = [f"{axis}: {left.pop(name, None) or repr(name)}" for axis, name in sorted(names.items())]
        entries += [f'"{leaf.name}": {{{", ".join(listed)}}}'.replace("'", '"')] if listed else []
    return "dims={" + ", ".join(entries) + "}"


def _names(traceback: TracebackType | None, example: Example) -> dict[str, str]:
    """The user's dims by the exporter's symbols: its own table, which only the frames of the failure still hold."""
    axes = {(leaf.name, axis): dim.name for leaf in example.leaves for axis, dim in enumerate(leaf.axes) if dim}
    found: dict[str, str] = {}
    while traceback is not None:
        for value in list(traceback.tb_frame.f_locals.values()):
            sources: Any = getattr(getattr(value, "shape_env", None), "var_to_sources", None)
            for symbol, listed in sources.items() if isinstance(sources, dict) else ():
                for source in listed:
                    text = source.name if isinstance(source.name, str) else source.name()
                    if match := _SOURCE.fullmatch(text):
                        leaf = ".".join(re.findall(r"\w+", match[1]))
                        found.setdefault(str(symbol), axes.get((leaf, int(match[2])), str(symbol)))
        traceback = traceback.tb_next
    return found
