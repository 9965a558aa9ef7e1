"""torch.compile(model, backend="tilewright"): torch traces pieces of a program, each becomes a program of ours.

AOTAutograd makes each piece functional and, at every call, writes back mutated inputs and restores which outputs are
views of what; the composite operators that we lower whole (linear, attention, norms) it leaves whole.

Parameters are inputs: nothing is packed, and what the user does to them is seen. With
`options={"freeze_weights": True}` they are packed when first met; a parameter that is another tensor at a later call,
that has other memory (`p.data = ...`), or that torch counts a write to since (`p.mul_`, `load_state_dict`, an
optimizer's step), is packed again. Not seen are writes into the same memory that torch does not count: through
`p.data` (`p.data.mul_(2)`), through a NumPy array that shares it, or by code outside torch; and of parameters made
under `torch.inference_mode()`, for which torch counts nothing, all writes in place. Whoever writes so compiles again
(`torch._dynamo.reset()`), or leaves freeze_weights off.

Calls that autograd would record run in eager, and with `options={"fallback": "torch"}` also graphs that have no kernels
or are in training mode: one warning of each kind for the process, and counts in
`torch._dynamo.utils.counters["tilewright"]`.
"""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from tilewright.compiler.compiled import Compiled
from tilewright.compiler.entry import finish
from tilewright.compiler.options import Options
from tilewright.compiler.stopwatch import Stopwatch
from tilewright.compiler.target import Target
from tilewright.errors import (
    AutogradError,
    AutogradWarning,
    EagerWarning,
    LoweringError,
    OptionError,
    TilewrightError,
    TrainingModeError,
    UnsupportedOpError,
)
from tilewright.frontend.agreeing import example_size
from tilewright.frontend.custom_ops import decompositions, require_agreement
from tilewright.frontend.functional import Functional, capture_functional
from tilewright.frontend.registry import lowerings
from tilewright.frontend.views import Views, split_views
from tilewright.runtime.executor import Executable

if TYPE_CHECKING:
    import torch

Frozen = Mapping[int, tuple[str, "torch.Tensor"]]
# options of compile() that a piece of a model cannot have, as compile() takes them
_NOT_TAKEN: Final = {"attention": "attention=...", "check": 'check="first"', "materialise": "materialise=True"}
_FALLBACK: Final = 'or run graphs like this one in eager: options={"fallback": "torch"}'


def tilewright(
    graph_module: Any, inputs: Sequence[Any], *, options: Mapping[str, Any] | None = None, **more: Any
) -> Any:
    """The backend, as torch calls it. options: those of `tilewright.compile` but for check, and freeze_weights.

    Raises what `tilewright.compile` raises; torch shows it inside its own BackendCompilerFailed. With fallback="torch",
    graphs that it has no kernels for, or that are in training mode, run in eager instead: whole, with one EagerWarning
    for the process that names the operators, and counts ("unsupported_in_eager").
    """
    import torch
    from torch._functorch.aot_autograd import aot_module_simplified

    given = dict(options or {})
    freeze = given.pop("freeze_weights", False)
    # what is wrong, and what to write instead
    faults = {
        f"torch.compile's {name}={value!r} means nothing here": f"leave {name}= out: what there is to choose is in "
        'options, as in options={"precision": "bf16"}'
        for name, value in more.items()
        if value is not None
    }
    if not isinstance(freeze, bool):
        faults[f"freeze_weights={freeze!r} is not True or False"] = 'options={"freeze_weights": True}'
    if given.get("fallback", "error") not in ("error", "torch"):
        faults[f"fallback={given['fallback']!r} is not one of 'error', 'torch'"] = 'options={"fallback": "torch"}'
    for name in (n for n in _NOT_TAKEN if n in given):
        faults[f"{name} is an option of tilewright.compile alone"] = (
            f"leave it out here, and compile the module itself for it: tw.compile(model, args, {_NOT_TAKEN[name]})"
        )
    if faults:
        raise OptionError(list(faults), step="; ".join(dict.fromkeys(faults.values())))
    caller = 'torch.compile(backend="tilewright")'
    falls = given.get("fallback") == "torch"
    stated = {name: value for name, value in given.items() if not (falls and name == "fallback")}
    chosen = Options.of(stated, caller=caller, more=("freeze_weights",), less=_NOT_TAKEN)
    asking = [
        n for n, value in zip(_names(graph_module), inputs, strict=True) if getattr(value, "requires_grad", False)
    ]
    if asking and torch.is_grad_enabled():
        return _in_eager(graph_module, asking)
    weights = _weights(graph_module, inputs) if freeze else {}

    def build(gm: Any, example_inputs: Sequence[Any]) -> Any:
        del example_inputs
        return _build(gm, weights, len(inputs), chosen)

    try:
        require_agreement(graph_module.graph.nodes)
        with _composites_whole():
            return aot_module_simplified(
                graph_module,
                list(inputs),
                fw_compiler=build,
                bw_compiler=_no_backward,
                decompositions=decompositions(_targets(graph_module)),
                inference_compiler=build,
            )
    except (UnsupportedOpError, TrainingModeError, LoweringError) as fault:
        if not falls:
            told = _of_one_memory(graph_module, inputs, fault)
            if told is None:
                told = type(fault)(fault.problems, step=f"{fault.step}; {_FALLBACK}")
            raise told from fault
        return _unsupported_in_eager(graph_module, fault)


def _build(graph: Any, weights: Frozen, count: int, options: Options) -> Callable[[list[Any]], list[Any]]:
    """One functional graph as a function of the list of its arguments, which it empties, as torch wants it."""
    from torch._dynamo.utils import counters
    from torch._subclasses.fake_tensor import unset_fake_temporarily

    placeholders = [node for node in graph.graph.nodes if node.op == "placeholder"]
    views = split_views(graph)
    layouts = _layouts(graph)
    frozen = {i: w for i, w in weights.items() if i not in _written()} if len(placeholders) == count else {}
    # torch traces under a mode in which all tensors are fake; packing and folding need real ones
    with unset_fake_temporarily():
        found = capture_functional(graph, frozen)
        compiled = finish(found.captured, Target.of(options), options, Stopwatch())
        piece = _Piece(compiled, found, frozen, layouts, views)
    counters["tilewright"]["graphs"] += 1
    run: Any = piece.run
    return _Boxed(run)


class _Boxed:
    """A function that takes its arguments as one list and says so."""

    _boxed_call = True

    def __init__(self, run: Callable[[list[Any]], list[Any]]) -> None:
        self._run = run

    def __call__(self, arguments: list[Any]) -> list[Any]:
        return self._run(arguments)


class _Piece:
    """A compiled piece. layouts: for each result, the order of its axes in memory, None where it is row-major. views:
    makes the outputs of the results, where they are not the same.
    """

    def __init__(
        self,
        compiled: Compiled,
        found: Functional,
        frozen: Frozen,
        layouts: Sequence[tuple[int, ...] | None],
        views: Views | None,
    ) -> None:
        self._compiled = compiled
        self._numbers = found.arguments
        self._signs = [found.signs.get(i, 0) for i in range(len(found.arguments))]
        self._layouts = [(i, order) for i, order in enumerate(layouts) if order is not None]
        self._views = views
        self._names = {number: name for number, (name, _) in frozen.items()}
        self._packed: dict[_State, tuple[Executable, list[Any]]] = {}
        self._lock = threading.Lock()
        if frozen:
            held = {number: value for number, (_, value) in frozen.items()}
            self._packed[_state(held.values())] = (compiled.executable, _kept(held.values()))

    def run(self, arguments: list[Any]) -> list[Any]:
        """The outputs; `arguments` is emptied, so that what only this call holds can be freed."""
        import torch

        executable = self._executable(arguments) if self._names else self._compiled.executable
        given = [
            torch.tensor(max(sign * arguments[i], 0), device="cpu") if sign else arguments[i]
            for i, sign in zip(self._numbers, self._signs, strict=True)
        ]
        outputs = list(executable(*given))
        for index, order in self._layouts:
            inverse = sorted(range(len(order)), key=order.__getitem__)
            outputs[index] = outputs[index].permute(order).contiguous().permute(inverse)
        if self._views is not None:
            outputs = self._views(outputs, arguments)
        arguments.clear()
        return outputs

    def _executable(self, arguments: Sequence[Any]) -> Executable:
        """The program with these parameters packed."""
        held = [arguments[number] for number in self._names]
        key = _state(held)
        found = self._packed.get(key)
        if found is None:
            with self._lock:
                found = self._packed.get(key)
                if found is None:
                    found = (self._again(held), _kept(held))
                    # what was packed of the same tensors before they were written to will not be asked for again
                    same = [k for k in self._packed if [of[0] for of in k] == [of[0] for of in key]]
                    for old in same:
                        del self._packed[old]
                    self._packed[key] = found
        return found[0]

    def _again(self, held: Sequence[Any]) -> Executable:
        values = {name: value.detach() for name, value in zip(self._names.values(), held, strict=True)}
        return self._compiled.executable.sibling(values)


_State: TypeAlias = tuple[tuple[Any, ...], ...]


def _state(tensors: Iterable[torch.Tensor]) -> _State:
    """Which tensors they are, where and how they lie in memory, and how often torch counts that each was written to.

    The piece keeps them and their memory alive, so that ids and addresses stay theirs: setting `.data` does not raise
    the count, and other values could come to lie where the old ones did.
    """
    return tuple(
        (id(t), t.data_ptr(), t.dtype, t.shape, t.stride(), None if t.is_inference() else t._version) for t in tensors
    )


def _kept(tensors: Iterable[torch.Tensor]) -> list[Any]:
    """The tensors, and what holds the memory that they have now."""
    return [(t, t.detach()) for t in tensors]


def _in_eager(graph_module: Any, asking: Sequence[str]) -> Callable[..., Any]:
    """The piece as torch itself runs it, counted."""
    from torch._dynamo.utils import counters

    told = AutogradError(
        f"{len(asking)} inputs of a graph ask for gradients ({', '.join(asking[:3])}{', ...' if asking[3:] else ''}), "
        "and a compiled program computes none: it runs in eager",
        step="call the model under torch.no_grad() or torch.inference_mode(), or model.requires_grad_(False)",
    )
    if not counters["tilewright"]["autograd_in_eager"]:
        warnings.warn(str(told), AutogradWarning, stacklevel=2)
    counters["tilewright"]["autograd_in_eager"] += 1

    def run(*arguments: Any) -> Any:
        counters["tilewright"]["autograd_calls"] += 1
        return graph_module(*arguments)

    return run


def _of_one_memory(graph_module: Any, inputs: Sequence[Any], fault: TilewrightError) -> TilewrightError | None:
    """The fault in the caller's words where inputs that overlap in memory, one of them written, brought it about.

    AOTAutograd puts one tensor in their place and takes each as as_strided of it, which no line of the user's says.
    """
    if not any(p.where is None and "aten.as_strided" in str(p) for p in fault.problems):
        return None
    held: dict[Any, list[str]] = {}
    for name, value in zip(_names(graph_module), inputs, strict=True):
        if hasattr(value, "untyped_storage"):
            # as the function calls it, which is what torch's name is made of
            held.setdefault(value.untyped_storage()._cdata, []).append(name.removeprefix("l_").removesuffix("_"))
    shared = [" and ".join(names) for names in held.values() if len(names) > 1]
    if not shared:
        return None
    return UnsupportedOpError(
        [f"inputs {names} share memory, and the graph writes to one of them" for names in shared],
        step='pass tensors with memory of their own, x.clone() say, or options={"fallback": "torch"} for such a graph',
    )


def _unsupported_in_eager(graph_module: Any, fault: TilewrightError) -> Any:
    """The piece as torch itself runs it, counted, because of what the fault says."""
    from torch._dynamo.utils import counters

    if not counters["tilewright"]["unsupported_in_eager"]:
        warnings.warn(f"a graph runs in eager, as fallback='torch' asks: {fault}", EagerWarning, stacklevel=2)
    counters["tilewright"]["unsupported_in_eager"] += 1
    return graph_module


def _no_backward(gm: Any, example_inputs: Sequence[Any]) -> Any:
    del gm, example_inputs
    raise AutogradError("a backward graph was asked for", step="call the model under torch.no_grad()")


def _targets(graph_module: Any) -> set[Any]:
    """The operators that a graph calls; packets of overloads by their default."""
    called = [node.target for node in graph_module.graph.nodes if node.op == "call_function"]
    return {getattr(target, "default", target) for target in called}


def _names(graph_module: Any) -> list[str]:
    return [node.name for node in graph_module.graph.nodes if node.op == "placeholder"]


def _weights(graph_module: Any, inputs: Sequence[Any]) -> dict[int, tuple[str, torch.Tensor]]:
    """Parameters and modules' buffers among the inputs, by the input's number."""
    import torch

    found: dict[int, tuple[str, torch.Tensor]] = {}
    nodes = [node for node in graph_module.graph.nodes if node.op == "placeholder"]
    for number, (node, value) in enumerate(zip(nodes, inputs, strict=True)):
        source = getattr(node, "_dynamo_source", None)
        held = False
        while source is not None and not held:
            held = type(source).__name__ == "UnspecializedParamBufferSource"
            source = getattr(source, "base", None)
        if isinstance(value, torch.nn.Parameter) or (held and isinstance(value, torch.Tensor)):
            found[number] = (node.name, value)
    return found


def _written() -> set[int]:
    """The numbers of the inputs that the graph being compiled writes to, by AOTAutograd's account."""
    from torch._guards import TracingContext

    context = TracingContext.try_get()
    meta = getattr(context, "fw_metadata", None)
    return {i for i, info in enumerate(meta.input_info) if info.mutates_data} if meta is not None else set()


def _layouts(graph: Any) -> list[tuple[int, ...] | None]:
    """For each output of a graph, its axes from the slowest to the fastest in memory; None where they are in order."""
    (output,) = [node for node in graph.graph.nodes if node.op == "output"]
    found: list[tuple[int, ...] | None] = []
    for leaf in output.args[0]:
        value: Any = leaf.meta.get("val") if hasattr(leaf, "meta") else None
        order = None
        if hasattr(value, "stride") and value.dim() > 1:
            steps = [example_size(step) for step in value.stride()]
            sizes = [example_size(size) for size in value.shape]
            # axes of one element may have any step
            order = tuple(sorted(range(value.dim()), key=lambda i: (-steps[i] if sizes[i] != 1 else -(10**18), i)))
            moved = [i for i in order if sizes[i] != 1]
            order = order if moved != sorted(moved) and 0 not in steps else None
        found.append(order)
    return found


@contextlib.contextmanager
def _composites_whole() -> Iterator[None]:
    """Composite operators with a lowering of their own stay one node of the traced graph."""
    from torch._export.utils import _collect_all_valid_cia_ops, _special_op_to_preserve_cia
    from torch.export.exported_program import _override_composite_implicit_decomp

    known = lowerings()
    kept = {op: _special_op_to_preserve_cia for op in _collect_all_valid_cia_ops() if str(op) in known}
    with _override_composite_implicit_decomp(kept):
        yield
