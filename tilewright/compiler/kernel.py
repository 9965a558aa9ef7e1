"""@tw.kernel: a kernel written in Python with the tile builder, callable like a function on tensors."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tilewright.compiler.compiled import Compiled
from tilewright.compiler.graph_breaks import settle, untraced
from tilewright.compiler.kernel_check import check_kernel
from tilewright.compiler.kernel_program import compile_kernel, kernel_sources
from tilewright.compiler.kernel_spec import KernelSpec, Static
from tilewright.compiler.kernel_surroundings import Surroundings
from tilewright.compiler.kernel_tracing import place_of, trace
from tilewright.compiler.options import Options
from tilewright.compiler.target import Target
from tilewright.errors import ArgumentError, DimMismatchError, DTypeError, OptionError, Problem, RankError
from tilewright.ir.dtypes import DTYPES, DType
from tilewright.ir.signature import Input, bind_call
from tilewright.ir.solve import Axis, solve
from tilewright.ir.tile.counting import Counters
from tilewright.ir.tile.structure import KernelOp
from tilewright.ir.tile.traffic import KernelTraffic, kernel_traffic
from tilewright.ir.tile_interpreter import run_kernel
from tilewright.runtime.binding_errors import check_tensors
from tilewright.runtime.tensors import as_buffer, describe, is_torch, torch_dtype

_OPTIONS = ("target", "threads", "memory_limit", "cache")


class Kernel:
    """A user's kernel. Calling it compiles it for the CPU the first time it meets new values of its static parameters.

    `compile` gives the compiled kernel alone, whose calls never compile; `interpret` runs it in the tile interpreter;
    `traffic` is what it moves and computes, as formulas; `sources` is its code for any target.
    """

    def __init__(self, signature: str, function: Callable[..., None]) -> None:
        self.spec = KernelSpec.of(signature, function, place_of(function))
        self.function = function
        self._traced: dict[tuple[Static, ...], KernelOp] = {}
        self._compiled: dict[tuple[Static, ...], Compiled] = {}
        self._sound: set[tuple[Static, ...]] = set()
        self._surroundings: Surroundings | None = None
        self._lock = threading.RLock()
        functools.update_wrapper(self, function)
        settle()

    def __repr__(self) -> str:
        return f"<Kernel @{self.spec.name} at {self.spec.where}>"

    @untraced
    def __call__(self, *tensors: Any, **given: Any) -> Any:
        """The outputs for these inputs: torch tensors in, torch tensors out; NumPy arrays in, NumPy arrays out.

        given: inputs by name, and static parameters that neither a shape nor a dtype says. One output comes as it is,
        several as a tuple. Where a global, closure or default that the function reads has another value than before,
        the kernel is built again. Raises KernelError, what `compile` raises, and what a compiled call raises.
        """
        inputs, statics = self._bound(tensors, given)
        self._forget_others()
        key = tuple(statics.values())
        compiled = self._compiled.get(key)
        if compiled is None:
            with self._lock:
                compiled = self._compiled.get(key)
                if compiled is None:
                    compiled = self._compiled[key] = self._compile(statics, Options())
        try:
            return compiled(*inputs)
        except RankError as fault:
            raise self._of_another_rank(fault) from None
        except DimMismatchError as fault:
            raise self._of_other_sizes(fault, inputs) from None

    def compile(self, target: str | Sequence[str] = "cpu", **given: Any) -> Compiled:
        """The kernel for these values of its static parameters, to call, profile, save, and read the report of.

        given: static parameters, and the options threads, memory_limit and cache of `tilewright.compile`. Before it is
        built, the kernel is run in the tile interpreter at a few small sizes of its dims (`kernel_check`): raises
        KernelStoreError for elements that are left out or written twice and PoisonError for values from outside a view,
        with the sizes and the line.
        """
        self._require_target(target, "compile")
        options = Options.of({"target": target, **{n: v for n, v in given.items() if n in _OPTIONS}})
        statics = self.spec.resolve({n: v for n, v in given.items() if n not in _OPTIONS})
        return self._compile(statics, options)

    def trace(self, **statics: Any) -> KernelOp:
        """The kernel as tile IR."""
        return self._trace(self.spec.resolve(statics))

    def checked(self, **statics: Any) -> KernelOp:
        """The kernel as tile IR, found sound as `compile` does it; once for each set of static parameters."""
        values = self.spec.resolve(statics)
        kernel, key = self._trace(values), tuple(values.values())  # first: it forgets what is sound no longer
        if key not in self._sound:
            check_kernel(kernel, [b.name for b in self.spec.buffers])
            self._sound.add(key)
        return kernel

    def ir(self, **statics: Any) -> str:
        """The kernel's tile IR as text."""
        return str(self.trace(**statics))

    def traffic(self, **statics: Any) -> KernelTraffic:
        """What the kernel moves and computes, as formulas in its dims, and the bytes that no kernel can save."""
        return kernel_traffic(self.trace(**statics))

    def sources(self, target: str | Sequence[str] = "cpu", **statics: Any) -> Mapping[str, str]:
        """The kernel's code for any registered target, built by its toolchain; nothing is run."""
        self._require_target(target, "sources")
        chosen = tuple(target) if not isinstance(target, str) else target
        return kernel_sources(self.trace(**statics), Target.of(Options(target=chosen)))

    def interpret(self, *tensors: Any, counters: Counters | None = None, **given: Any) -> Any:
        """What a call gives, computed by the tile interpreter: slow, exact, every access checked and counted.

        counters: added to. Raises PoisonError and KernelStoreError where the kernel is unsound.
        """
        inputs, statics = self._bound(tensors, given)
        self._check(inputs, statics)
        arrays = [np.ascontiguousarray(as_buffer(value).numpy()) for value in inputs]
        axes = [
            Axis(buffer.name, i, dim, size)
            for buffer, array in zip(self.spec.inputs, arrays, strict=True)
            for i, (dim, size) in enumerate(zip(buffer.dims_at(statics), array.shape, strict=True))
        ]
        solution = solve(axes, {})
        if solution.wrong:
            raise ArgumentError(
                [f"{axis} has size {axis.size}, declared {axis.expr}" for axis in solution.wrong],
                step="pass shapes that agree with the signature",
            )
        outputs = [
            np.empty([d.evaluate(solution.values) for d in b.dims_at(statics)], b.dtype_at(statics).numpy())
            for b in self.spec.outputs
        ]
        kernel = self._trace(statics)
        names = [b.name for b in self.spec.buffers]
        dims = {d: solution.values[d] for d in kernel.dims.data}
        run_kernel(kernel, [*arrays, *outputs], dims, counters, names=names)
        found: list[Any] = list(outputs)
        if any(is_torch(value) for value in inputs):
            found = [_torch(b.dtype_at(statics), a) for b, a in zip(self.spec.outputs, outputs, strict=True)]
        return found[0] if len(found) == 1 else tuple(found)

    def _require_target(self, target: object, method: str) -> None:
        """OptionError where an input is given to what takes the static parameters alone."""
        if isinstance(target, str) or (isinstance(target, (list, tuple)) and all(isinstance(t, str) for t in target)):
            return
        takes = ", ".join(f"{name}=" for name in self.spec.statics)
        call = f"{method}({', '.join(f'{name}=...' for name in self.spec.statics)})"
        raise OptionError(
            f"@{self.spec.name}.{method} takes {f'{takes} and ' if takes else ''}a target's name, not inputs; "
            f"it was given a {type(target).__name__}",
            step=f"write {self.spec.name}.{call}, or call {self.spec.name} with its inputs",
        )

    def _bound(self, tensors: Sequence[Any], given: Mapping[str, Any]) -> tuple[list[Any], dict[str, Static]]:
        """A call's inputs in order, and the values of all static parameters."""
        import inspect

        names = [b.name for b in self.spec.inputs]
        statics = {n: v for n, v in given.items() if n in self.spec.statics}
        named = {n: v for n, v in given.items() if n not in self.spec.statics}
        if named or len(tensors) != len(names):
            kinds = [inspect.Parameter(n, inspect.Parameter.POSITIONAL_OR_KEYWORD) for n in names]
            bound = bind_call(inspect.Signature(kinds), tensors, named)
            tensors = [bound.arguments[n] for n in names]
        if not self.spec.statics:
            return list(tensors), {}
        described = [describe(value) for value in tensors]
        shapes = [(None, ()) if d is None else (d.dtype, d.shape) for d in described]
        # before statics are asked for, which such inputs cannot give
        if any(
            d is None or d.dtype is None or len(d.shape) != len(b.dims)
            for b, d in zip(self.spec.inputs, described, strict=True)
        ):
            self._check(tensors, statics)
        return list(tensors), self.spec.resolve(statics, shapes)

    def _check(self, tensors: Sequence[Any], statics: Mapping[str, Any]) -> None:
        """Raises what a compiled call raises for inputs that are no tensors, or of another dtype, device or rank.

        statics: those known; a dtype that is not among them is any that the IR has.
        """
        leaves, faults = [], []
        for buffer, value in zip(self.spec.inputs, tensors, strict=True):
            found, dtype = describe(value), statics.get(buffer.dtype, buffer.dtype)
            if buffer.dtype in self.spec.dtypes and buffer.dtype not in statics and found is not None:
                dtype = found.dtype
                if dtype is None:
                    faults.append(
                        f"{buffer.name} is {found.dtype_name}, and {buffer.dtype} is none of {', '.join(DTYPES)}"
                    )
            leaves.append(Input(buffer.name, DTYPES.get(dtype, None) if isinstance(dtype, str) else dtype, buffer.dims))
        if faults:
            raise DTypeError(faults, step="convert it to one of these")
        try:
            check_tensors(leaves, tensors)
        except RankError as fault:
            raise self._of_another_rank(fault) from None

    def _of_another_rank(self, fault: RankError) -> RankError:
        """The fault with a kernel's next step: it has no example to go by."""
        return RankError(fault.problems, step=f"pass what the signature says: {self._inputs_text}")

    def _of_other_sizes(self, fault: DimMismatchError, tensors: Sequence[Any]) -> DimMismatchError:
        """The fault in the signature's words: what each input says of a dim that they do not agree about."""
        said: dict[str, dict[int, str]] = {}
        for buffer, value in zip(self.spec.inputs, tensors, strict=True):
            found = describe(value)
            for dim, size in zip(buffer.dims, found.shape if found is not None else (), strict=True):
                said.setdefault(str(dim), {} if dim.constant is None else {dim.constant: "the signature says"})
                said[str(dim)].setdefault(size, f"{buffer.name} gives")
        problems: list[str | Problem] = [
            ", ".join(f"{who} {dim}={size}" if not dim.isdigit() else f"{who} {size}" for size, who in sizes.items())
            for dim, sizes in said.items()
            if len(sizes) > 1
        ]
        step = f"pass sizes that agree with the signature: {self._inputs_text}"
        return DimMismatchError(problems or fault.problems, step=step)

    @property
    def _inputs_text(self) -> str:
        """The signature's left side."""
        return ", ".join(f"{b.name} {b.dtype}[{', '.join(map(str, b.dims))}]" for b in self.spec.inputs)

    def _trace(self, statics: Mapping[str, Static]) -> KernelOp:
        key = tuple(statics.values())
        with self._lock:
            self._forget_others()
            if key not in self._traced:
                self._traced[key] = trace(self.spec, self.function, statics)
            return self._traced[key]

    def _forget_others(self) -> None:
        """Drops what was made while globals, closures or defaults that the function reads had other values."""
        if self._surroundings is not None and self._surroundings.are_as_before():
            return
        with self._lock:
            # before the function runs: what changes meanwhile is found by the next call
            self._surroundings = Surroundings(self.function)
            self._traced.clear()
            self._compiled.clear()
            self._sound.clear()

    def _compile(self, statics: Mapping[str, Static], options: Options) -> Compiled:
        return compile_kernel(self._trace(statics), self.spec, statics, options)


def _torch(dtype: DType, array: Any) -> Any:
    """An array of the interpreter's as a torch tensor; NumPy's bf16 travels as its bits."""
    import torch

    if dtype.name != "bf16":
        return torch.from_numpy(array)
    return torch.from_numpy(array.view(np.uint16)).view(torch_dtype(dtype))


def kernel(signature: str) -> Callable[[Callable[..., None]], Kernel]:
    """See tilewright.kernel."""
    if not isinstance(signature, str):
        raise OptionError(
            "@tw.kernel takes the kernel's signature as text",
            step='write @tw.kernel("x f32[rows, 64] -> y f32[rows, 64]")',
        )
    return lambda function: Kernel(signature, function)
