"""A call's arguments from the command line: arrays from .npy files, and random ones that the model can read."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tilewright.errors import ArgumentError, OptionError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from xdsl.dialects.builtin import ModuleOp
    from xdsl.ir import SSAValue

    from tilewright.ir.dims import Dim, Expr
    from tilewright.ir.signature import Input, Signature
    from tilewright.runtime.program import Program

# What a dim is drawn as where neither the user nor a given array says it.
_USUAL = 8


def read_arrays(texts: Sequence[str]) -> dict[str, NDArray[Any]]:
    """`name=file.npy`, each, as arrays by name. OptionError for another form or a file that is no array."""
    import numpy as np

    found: dict[str, NDArray[Any]] = {}
    for text in texts:
        name, equals, path = text.partition("=")
        if not equals or not name or not path:
            raise OptionError(f"--input {text!r} does not name an input and a file", step="write --input name=file.npy")
        try:
            held = np.load(Path(path), allow_pickle=False)
        except (OSError, ValueError, EOFError) as fault:
            # NumPy's own words for anything that is no array advise to unpickle it
            reason = getattr(fault, "strerror", None) or "it does not hold an array"
            raise OptionError(
                f"--input {name}: {path} cannot be read: {reason}", step="write the array with numpy.save(path, array)"
            ) from fault
        if not isinstance(held, np.ndarray):
            # an .npz, such as `run -o` writes
            with held:
                raise _several(name, path, held.files)
        found[name] = held
    return found


def _several(name: str, path: str, names: Sequence[str]) -> OptionError:
    """An archive of arrays where one is asked for."""
    if not names:
        return OptionError(
            f"--input {name}: {path} holds no array", step="write the array with numpy.save(path, array)"
        )
    return OptionError(
        f"--input {name}: {path} holds arrays by name ({', '.join(names)}), not one array",
        step=f'numpy.save("{name}.npy", numpy.load("{path}")["{names[0]}"]), then --input {name}={name}.npy',
    )


def usual_sizes(dims: Iterable[Dim], given: Mapping[str, int]) -> dict[str, int]:
    """A size for each dim: the given one, else 8 or the nearest that its range admits.

    OptionError for a dim that does not exist or a size outside its range.
    """
    known = {dim.name: dim for dim in dims if dim.kind != "runtime"}
    faults = []
    for name in (n for n in given if n not in known):
        near = difflib.get_close_matches(name, [n for n in known if n not in given], n=1)
        faults.append(f"the program has no dim {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
    for name, size in given.items():
        dim = known.get(name)
        if dim is not None and (size < dim.min or (dim.max is not None and size > dim.max)):
            faults.append(f"{name} = {size} is outside {dim.min}..{'' if dim.max is None else dim.max}")
    if faults:
        listed = ",".join(f"{n}={_usual(d)}" for n, d in known.items())
        raise OptionError(faults, step=f"give sizes like {listed}" if listed else "leave the sizes out: it has no dims")
    return {name: given.get(name, _usual(dim)) for name, dim in known.items()}


def _usual(dim: Dim) -> int:
    return max(dim.min, _USUAL if dim.max is None else min(dim.max, _USUAL))


def sizes_of(signature: Signature, given: Mapping[str, NDArray[Any]]) -> dict[str, int]:
    """The dims that given arrays state: one that is an axis by itself has that axis's size."""
    found: dict[str, int] = {}
    for leaf in signature.tensors:
        if leaf.name in given and given[leaf.name].ndim == len(leaf.dims):
            for dim, size in zip(leaf.dims, given[leaf.name].shape, strict=True):
                if {str(dim)} == dim.symbols:
                    found.setdefault(str(dim), int(size))
    return found


def require_inputs(signature: Signature, given: Mapping[str, object], *, random: bool) -> None:
    """ArgumentError for given inputs that the program does not take, or missing ones where none may be drawn."""
    names = [leaf.name for leaf in signature.tensors]
    faults = [f"{name} is not an input" for name in given if name not in names]
    missing = [] if random else [name for name in names if name not in given]
    faults += [f"{name} is not given" for name in missing]
    if faults:
        step = " ".join(f"--input {name}={name}.npy" for name in names)
        raise ArgumentError(faults, step=f"give {step}" + (", or --random 0 for random values" if missing else ""))


def draw(
    program: Program,
    sizes: Mapping[str, int],
    limits: Mapping[str, Expr],
    rng: np.random.Generator,
    given: Mapping[str, NDArray[Any]] | None = None,
) -> list[NDArray[Any]]:
    """Every tensor of a call, in order: those given, the rest random.

    Floats are standard normal; integers that index an axis (`limits`) lie inside it; other integers and booleans are 0
    or 1 with the first of each row 1, so that no row of a mask is empty.
    """
    leaves = []
    for leaf in program.signature.tensors:
        array = (given or {}).get(leaf.name)
        leaves.append(_random(leaf, sizes, limits.get(leaf.name), rng) if array is None else array)
    for read in program.reads:
        if program.signature.tensors[read.input].name not in (given or {}):
            leaves[read.input].reshape(-1)[read.element] = sizes[read.dim]
    return leaves


def _random(leaf: Input, sizes: Mapping[str, int], limit: Expr | None, rng: np.random.Generator) -> NDArray[Any]:
    assert leaf.dtype is not None  # only tensors are drawn
    shape, dtype = tuple(d.evaluate(sizes) for d in leaf.dims), leaf.dtype.numpy()
    if leaf.dtype.is_float:
        return rng.standard_normal(shape).astype(dtype)
    if limit is not None:
        return rng.integers(0, max(1, limit.evaluate(sizes)), shape).astype(dtype)
    found = rng.random(shape) < 0.8
    found[..., :1] = True
    return found.astype(dtype)


def index_limits(module: ModuleOp) -> dict[str, Expr]:
    """For each argument of @main that indexes an axis as it is (through casts and views alone), the axis's size."""
    from tilewright.ir.module import function

    main = function(module, "main")
    limits: dict[str, Expr] = {}
    for name, value in main.arguments.items():
        for size in _indexed(value):
            # of several axes the shortest that is a number counts
            known = limits.get(name)
            if known is None or (
                size.constant is not None and (known.constant is None or size.constant < known.constant)
            ):
                limits[name] = size
    return limits


def _indexed(value: SSAValue) -> Iterable[Expr]:
    """The sizes of the axes that a value indexes."""
    from tilewright.ir.graph.base import tensor
    from tilewright.ir.graph.elementwise import CastOp
    from tilewright.ir.graph.indexing import GatherOp, PutAlongOp, ScatterOp, StateUpdateOp, TakeAlongOp
    from tilewright.ir.graph.shape import BroadcastOp, ReshapeOp, SliceOp, TransposeOp
    from tilewright.ir.graph.structure import GroupOp, YieldOp

    pending = [value]
    while pending:
        current = pending.pop()
        for use in current.uses:
            op = use.operation
            match op:
                case GatherOp() | TakeAlongOp() | ScatterOp() | PutAlongOp() if op.indices is current:
                    yield tensor(op.x).dims[op.axis.data]
                case StateUpdateOp() if op.indices is current:
                    yield tensor(op.state).dims[op.axis.data]
                case CastOp() | ReshapeOp() | TransposeOp() | SliceOp() | BroadcastOp():
                    pending += op.results
                case GroupOp():
                    pending.append(op.block.args[use.index])
                case YieldOp() if isinstance(group := op.parent_op(), GroupOp):
                    pending.append(group.outs[use.index])


def call_of(signature: Signature, leaves: Sequence[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a call whose tensors are `leaves`, in the order of @main's arguments."""
    tensors = iter(leaves)
    values = {}
    for argument in signature.arguments:
        parts = [next(tensors) if leaf.is_tensor else leaf.constant for leaf in argument.inputs]
        values[argument.name] = argument.tree.rebuild(iter(parts))
    args: list[Any] = []
    by_place = True
    for parameter in signature.parameters:
        if parameter.kind == "var_positional":
            args += [values.pop(name) for name in list(values) if name.startswith(f"{parameter.name}.")]
        # by place as far as there is no gap: an exported program takes its positional arguments in no other way
        by_place = by_place and parameter.kind in ("positional", "either") and parameter.name in values
        if by_place:
            args.append(values.pop(parameter.name))
    return tuple(args), values


def as_torch(array: NDArray[Any]) -> Any:
    """A NumPy array as a torch tensor; bf16, which NumPy itself does not have, by its bits."""
    import numpy as np
    import torch

    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(array)


def named_outputs(signature: Signature, output: Any) -> dict[str, Any]:
    """The leaves of an output by name: "last_hidden_state", "0", or "output" where there is only one unnamed."""
    names = signature.output.paths("")
    leaves = signature.output.flatten(output, "output")
    return {name or "output": leaf for name, leaf in zip(names, leaves, strict=True)}
