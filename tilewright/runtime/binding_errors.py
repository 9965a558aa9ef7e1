"""What can be wrong with a call's arguments, one check a kind of fault, each reporting every fault of its kind.

The next step of a fault in sizes is the `dims=` line to paste into compile(): it admits the call.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tilewright.errors import (
    ArgumentError,
    AutogradError,
    DeviceError,
    DimMismatchError,
    DimRangeError,
    DTypeError,
    RankError,
)
from tilewright.ir.dims import Dim
from tilewright.ir.dtypes import torch_name
from tilewright.ir.guards import Guard
from tilewright.ir.signature import Argument, Input
from tilewright.ir.solve import Axis, Solution, linear
from tilewright.ir.trees import Tree
from tilewright.runtime.program import Program
from tilewright.runtime.tensors import address_of, describe, is_torch, numpy_dtype


def check_tensors(inputs: Sequence[Input], leaves: Sequence[Any]) -> None:
    """Every leaf is a tensor on the CPU with the declared dtype and rank, and has memory."""
    found = [describe(leaf) for leaf in leaves]
    strangers = [
        f"{leaf.name} is {_named(value)}, compiled for a tensor"
        for leaf, value, d in zip(inputs, leaves, found, strict=True)
        if d is None
    ]
    if strangers:
        raise ArgumentError(strangers, step="pass torch tensors or NumPy arrays")
    known = [(leaf, value, d) for leaf, value, d in zip(inputs, leaves, found, strict=True) if d is not None]
    elsewhere = [(leaf, d.device) for leaf, _, d in known if d.device != "cpu"]
    if elsewhere:
        raise DeviceError(
            [f"{leaf.name} is on {device}, compiled for cpu" for leaf, device in elsewhere],
            step="pass tensors that hold data"
            if all(device == "meta" for _, device in elsewhere)
            else "move it: " + ", ".join(f"{leaf.name}.cpu()" for leaf, device in elsewhere if device != "meta"),
        )
    types = [(leaf, value, d) for leaf, value, d in known if d.dtype != leaf.dtype]
    if types:
        raise DTypeError(
            [f"{leaf.name} is {d.dtype_name}, compiled for {_dtype(leaf)}" for leaf, _, d in types],
            step=_conversions(types),
        )
    hollow = [
        f"{leaf.name} is a {type(value).__name__} without memory that kernels can read"
        for leaf, value, d in known
        if is_torch(value) and _without_memory(value, dense=d.dense)
    ]
    if hollow:
        step = "pass dense tensors that hold data, outside torch.func's transforms (vmap, ...)"
        raise ArgumentError(hollow, step=step)
    ranks = [(leaf, d) for leaf, _, d in known if len(d.shape) != len(leaf.dims)]
    if ranks:
        raise RankError(
            [f"{leaf.name} has {_axes(d.shape)}, compiled for {_axes(leaf.dims)}" for leaf, d in ranks],
            step="pass the shapes of the example, or compile again with an example of this rank",
        )


def _named(value: Any) -> str:
    plain = value is None or isinstance(value, (bool, int, float, str))
    return repr(value) if plain else f"a {type(value).__name__}"


def _axes(sizes: Sequence[Any]) -> str:
    count = f"{len(sizes)} axis" if len(sizes) == 1 else f"{len(sizes)} axes"
    return f"{count} [{', '.join(map(str, sizes))}]"


def _dtype(leaf: Input) -> str:
    """A leaf's dtype by the name that the caller's own tensors have theirs by."""
    return "none" if leaf.dtype is None else torch_name(leaf.dtype)


def _conversions(types: Sequence[tuple[Input, Any, Any]]) -> str:
    parts = [(leaf.name, is_torch(value)) for leaf, value, d in types if "complex" in d.dtype_name]
    if parts:
        # a cast to a real dtype would leave the imaginary part out
        apart = ", ".join(
            f"torch.view_as_real({name})" if of_torch else f"np.stack([{name}.real, {name}.imag], -1)"
            for name, of_torch in parts
        )
        return f"complex numbers are not supported; pass real and imaginary parts apart: {apart}"
    return "convert: " + ", ".join(_conversion(leaf, value) for leaf, value, _ in types)


def _conversion(leaf: Input, value: Any) -> str:
    if leaf.dtype is None:
        return leaf.name
    if is_torch(value):
        if value.is_quantized:
            return f"{leaf.name}.dequantize().to(torch.{torch_name(leaf.dtype)})"
        return f"{leaf.name}.to(torch.{torch_name(leaf.dtype)})"
    return f"{leaf.name}.astype({numpy_dtype(leaf.dtype).name!r})"


def _without_memory(tensor: Any, *, dense: bool) -> bool:
    """Sparse tensors, and those of a tracer, which only look like tensors."""
    if not dense:
        return True
    try:
        return bool(tensor.untyped_storage().device.type != "cpu" or (tensor.data_ptr() == 0 and tensor.numel() > 0))
    except RuntimeError:
        return True


def check_gradients(inputs: Sequence[Input], leaves: Sequence[Any]) -> None:
    """Grad mode is on: no leaf may ask for a gradient."""
    asking = [leaf.name for leaf, value in zip(inputs, leaves, strict=True) if is_torch(value) and value.requires_grad]
    if asking:
        raise AutogradError(
            [f"{name} requires grad, and grad mode is on; a compiled program computes no gradients" for name in asking],
            step=f"call it under torch.no_grad(), or pass {', '.join(f'{name}.detach()' for name in asking)}",
        )


def check_written(inputs: Sequence[Input], leaves: Sequence[Any], mutated: Sequence[int]) -> None:
    """The inputs that the model writes to can be written, and share no memory with another input."""
    faults = [
        f"{inputs[i].name} is read-only, but the model writes to it"
        for i in mutated
        if not is_torch(leaves[i]) and not (isinstance(leaves[i], np.ndarray) and leaves[i].flags.writeable)
    ]
    if faults:
        raise ArgumentError(faults, step="pass a writeable copy")
    folded = [inputs[i].name for i in mutated if _overlaps_itself(leaves[i])]
    if folded:
        raise ArgumentError(
            [f"{name}, which the model writes to, has elements that share memory (expanded)" for name in folded],
            step="pass a copy: " + ", ".join(f"{name}.clone()" for name in folded),
        )
    extents = [_extent(value) for value in leaves]
    for i in mutated:
        low, high = extents[i]
        for j, (other_low, other_high) in enumerate(extents):
            # Of two written inputs, the pair is reported once.
            if j != i and not (j in mutated and j < i) and low < other_high and other_low < high:
                faults.append(f"{inputs[i].name}, which the model writes to, shares memory with {inputs[j].name}")
    if faults:
        raise ArgumentError(faults, step="pass a copy: the program was compiled for separate tensors")


def _overlaps_itself(value: Any) -> bool:
    """Whether two elements may lie on the same bytes: sorted by stride, every axis must step over all before it."""
    if is_torch(value):
        item, axes = 1, zip(value.shape, value.stride(), strict=True)
    else:
        item, axes = value.itemsize, zip(value.shape, value.strides, strict=True)
    end = item
    for step, size in sorted((abs(step), size) for size, step in axes if size > 1):
        if step < end:
            return True
        end += step * (size - 1)
    return False


def _extent(value: Any) -> tuple[int, int]:
    """The first byte that a tensor touches and the one after its last; equal when it has none."""
    if is_torch(value):
        start, item, steps = value.data_ptr(), value.element_size(), value.stride()
    else:
        array = np.asarray(value)
        start, item, steps = address_of(array), 1, array.strides
        if not array.size:
            return start, start
        spans = [(size - 1) * step for size, step in zip(array.shape, steps, strict=True)]
        return start + sum(s for s in spans if s < 0), start + sum(s for s in spans if s > 0) + array.itemsize
    if value.numel() == 0:
        return start, start
    return start, start + item * (1 + sum((size - 1) * step for size, step in zip(value.shape, steps, strict=True)))


def read_dims(program: Program, leaves: Sequence[Any]) -> dict[str, int]:
    """The values of the read dims, from inputs whose dtype has been checked."""
    values: dict[str, int] = {}
    faults = []
    for read in program.reads:
        leaf = program.signature.tensors[read.input]
        tensor = leaves[read.input]
        count = tensor.numel() if is_torch(tensor) else tensor.size
        if read.element < count:
            flat = tensor.reshape(-1)[read.element]
            values[read.dim] = int(flat.item())
        else:
            faults.append(f"{read.dim} is element {read.element} of {leaf.name}, which has {count} elements")
    if faults:
        raise DimMismatchError(faults, step="pass the inputs that sizes are read from with at least that many elements")
    return values


def check_dims(program: Program, solution: Solution) -> None:
    """Every axis has the size that its dims demand, every dim is in its range, every guard holds."""
    if solution.wrong:
        raise _mismatch(program, solution)
    outside = [
        dim
        for dim in program.dims
        if dim.kind != "runtime"
        and (solution.values[dim.name] < dim.min or (dim.max is not None and solution.values[dim.name] > dim.max))
    ]
    if outside:
        wider = {dim.name: _wider(dim, solution.values[dim.name]) for dim in outside}
        raise DimRangeError(
            [
                f"{dim.name} = {solution.values[dim.name]} is outside {_range(dim)} ({_origin(program, solution, dim)})"
                for dim in outside
            ],
            step=_widening(program, wider),
        )
    broken = [g for g in program.guards if not g.holds(solution.values)]
    if broken:
        raise _unheld(program, solution, broken)


def _unheld(program: Program, solution: Solution, broken: Sequence[Guard]) -> DimMismatchError:
    """The relations that a call breaks, with the dims line under which an example of these sizes compiles."""
    problems = []
    for guard in broken:
        names = sorted(guard.left.symbols | guard.right.symbols)
        at = ", ".join(f"{name} = {solution.values[name]}" for name in names)
        why = f"; decided at {guard.where}" if guard.where else ""
        problems.append(f"{guard} does not hold for {at}{why}")
    fixed = {name for guard in broken for name in guard.left.symbols | guard.right.symbols}
    here = {d.name: Dim(d.name, *2 * (solution.values[d.name],), d.kind) for d in program.dims if d.name in fixed}
    line = dims_line(program, here, ())
    return DimMismatchError(
        problems, step=f"pass sizes for which it holds, or compile an example of these sizes with {line}"
    )


def _mismatch(program: Program, solution: Solution) -> DimMismatchError:
    fixed = [axis for axis in solution.wrong if axis.expr.is_static]
    problems = []
    for axis in solution.wrong:
        if axis.expr.is_static:
            problems.append(f"{axis} has size {axis.size}, compiled for {axis.expr} (it is not declared in dims)")
        elif linear(axis.expr) == (str(axis.expr), 1, 0):
            first = solution.origin.get(str(axis.expr))
            origin = f" ({first})" if first else ""
            problems.append(
                f"{axis} has size {axis.size}, but {axis.expr} is {solution.values[str(axis.expr)]}{origin}"
            )
        elif axis.expr.symbols <= solution.values.keys():
            at = ", ".join(f"{name} = {solution.values[name]}" for name in sorted(axis.expr.symbols))
            wanted = axis.expr.evaluate(solution.values)
            problems.append(f"{axis} has size {axis.size}, but {axis.expr} is {wanted} ({at})")
        else:
            problems.append(f"{axis} has size {axis.size}, which is not {axis.expr} for any size")
    if fixed:
        line = dims_line(program, {}, fixed)
        step = f"pass the size compiled for, or, if the model itself takes others, compile with {line}"
    else:
        step = "axes that share a dim must be equal: pass equal sizes, or compile with a tw.Dim of its own for each"
    return DimMismatchError(problems, step=step)


def _range(dim: Dim) -> str:
    return f"{dim.min}..{dim.max}" if dim.max is not None else f"{dim.min} and up"


def _origin(program: Program, solution: Solution, dim: Dim) -> str:
    for read in program.reads:
        if read.dim == dim.name:
            return f"read from {program.signature.tensors[read.input].name}"
    return str(solution.origin[dim.name])


def _wider(dim: Dim, value: int) -> Dim:
    return Dim(dim.name, min(dim.min, max(value, 0)), None if dim.max is None else max(dim.max, value), dim.kind)


def _widening(program: Program, wider: Mapping[str, Dim]) -> str:
    if all(dim.kind == "read" for dim in wider.values()):
        return "pass values in this range"
    return f"compile with {dims_line(program, wider, ())}"


def dims_line(program: Program, changed: Mapping[str, Dim], added: Sequence[Axis]) -> str:
    """The `dims=` argument that declares what the program declares, with some dims changed and some axes added.

    It follows the arguments' tree, with each tensor's declared axes by number. An added axis gets a dim from the
    example's size to the size it now came with.
    """
    declared = {dim.name: dim for dim in program.dims} | dict(changed)
    extra = {(axis.input, axis.axis): axis for axis in added}
    entries = []
    for argument in program.signature.arguments:
        text = _declared(argument, declared, extra)
        if text:
            entries.append(f'"{argument.name}": {text}')
    return "dims={" + ", ".join(entries) + "}"


def _declared(argument: Argument, dims: Mapping[str, Dim], extra: Mapping[tuple[str, int], Axis]) -> str | None:
    return _tree_text(argument.tree, iter([_leaf_text(leaf, dims, extra) for leaf in argument.inputs]))


def _leaf_text(leaf: Input, dims: Mapping[str, Dim], extra: Mapping[tuple[str, int], Axis]) -> str | None:
    axes = {}
    for number, expr in enumerate(leaf.dims):
        if (leaf.name, number) in extra:
            sizes = sorted((int(str(expr)), extra[leaf.name, number].size))
            name = "_".join(part for part in leaf.name.split(".") if part)
            axes[number] = f'tw.Dim("{name}_{number}", {sizes[0]}, {sizes[1]})'
        elif linear(expr) == (str(expr), 1, 0):
            dim = dims[str(expr)]
            upper = "" if dim.max is None else f", {dim.max}"
            axes[number] = f'tw.Dim("{dim.name}", {dim.min}{upper})'
    return "{" + ", ".join(f"{number}: {text}" for number, text in axes.items()) + "}" if axes else None


def _tree_text(tree: Tree, leaves: Iterator[str | None]) -> str | None:
    if tree.kind == "leaf":
        return next(leaves)
    parts = [_tree_text(child, leaves) for child in tree.children]
    if not any(parts):
        return None
    if tree.kind in ("dict", "record"):
        shown = [f"{_quoted(key)}: {part}" for key, part in zip(tree.keys, parts, strict=True) if part]
        return "{" + ", ".join(shown) + "}"
    listed = ", ".join(part or "None" for part in parts)
    if tree.kind == "list":
        return f"[{listed}]"
    return f"({listed},)" if len(parts) == 1 else f"({listed})"


def _quoted(key: str | int) -> str:
    return f'"{key}"' if isinstance(key, str) else str(key)
