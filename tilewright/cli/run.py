"""`tilewright run ARTIFACT`: one call, its outputs described and, if asked, saved."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tilewright.cli.options import Inputs, MemoryLimit, Random, Threads

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from tilewright.compiler.compiled import Compiled
    from tilewright.runtime.program import Program

ArtifactArgument = Annotated[str, typer.Argument(metavar="ARTIFACT", help="What `compile` wrote.", show_default=False)]
Sizes = Annotated[
    str | None,
    typer.Option(
        "--dims", metavar="SIZES", help="Sizes of random inputs: batch=8,tokens=82.", show_default="8, or the nearest"
    ),
]
Output = Annotated[
    Path | None, typer.Option("-o", "--output", metavar="FILE.npz", help="Where the outputs go.", show_default=False)
]
Rebuild = Annotated[
    bool,
    typer.Option("--rebuild", help="Rebuild the kernels from the artifact's IR: the way to open a stranger's file."),
]


def run(
    artifact: ArtifactArgument,
    inputs: Inputs = None,
    random: Random = None,
    dims: Sizes = None,
    output: Output = None,
    threads: Threads = None,
    memory_limit: MemoryLimit = None,
    rebuild: Rebuild = False,
) -> None:
    """Runs an artifact once and describes its outputs."""
    import tilewright
    from tilewright.cli.inputs import named_outputs, read_arrays
    from tilewright.cli.models import require_artifact
    from tilewright.cli.progress import say
    from tilewright.cli.writing import require_place

    require_place("-o", output, "out.npz")
    require_artifact(artifact)
    arrays = read_arrays(inputs or [])
    compiled = tilewright.load(artifact, native=not rebuild, threads=threads, memory_limit=memory_limit)
    args, kwargs, sizes = call_for(compiled, arrays, dims, random)
    begin = time.perf_counter()
    result = compiled(*args, **kwargs)
    seconds = time.perf_counter() - begin
    outputs = named_outputs(compiled.code.program.signature, result)
    describe(outputs)
    at = ", ".join(f"{name}={size}" for name, size in sizes.items())
    say(f"{seconds * 1e3:.2f} ms, the first call" + (f", at {at}" if at else ""))
    if output is not None:
        save(output, outputs)


def call_for(
    compiled: Compiled, arrays: dict[str, NDArray[Any]], sizes_text: str | None, seed: int | None
) -> tuple[tuple[Any, ...], dict[str, Any], dict[str, int]]:
    """The arguments of one call: given arrays, the rest random; and the sizes they have."""
    import numpy as np

    from tilewright.cli import inputs
    from tilewright.cli.dims_text import parse_sizes
    from tilewright.ir.module import parse_module

    program = compiled.code.program
    inputs.require_inputs(program.signature, arrays, random=seed is not None)
    asked = parse_sizes(sizes_text)
    require_agreement(program, arrays, asked)
    if seed is None:
        # every input is given: the call itself checks them, with the full story
        inputs.usual_sizes(program.dims, asked)
        sizes = {**asked, **inputs.sizes_of(program.signature, arrays)}
        return *inputs.call_of(program.signature, [arrays[leaf.name] for leaf in program.signature.tensors]), sizes
    sizes = inputs.usual_sizes(program.dims, {**asked, **inputs.sizes_of(program.signature, arrays)})
    texts = compiled.code.texts
    limits = inputs.index_limits(parse_module(texts.get("captured") or texts["graph"]))
    leaves = inputs.draw(program, sizes, limits, np.random.default_rng(seed), arrays)
    return *inputs.call_of(program.signature, leaves), sizes


def require_agreement(program: Program, arrays: dict[str, NDArray[Any]], asked: dict[str, int]) -> None:
    """OptionError where sizes that were asked for are not those of the arrays that were given."""
    from tilewright.errors import OptionError

    leaves = program.signature.tensors
    found = [
        (f"{leaf.name} axis {axis}", dim.evaluate(asked), size, dim.symbols)
        for leaf in leaves
        if leaf.name in arrays and arrays[leaf.name].ndim == len(leaf.dims)
        for axis, (dim, size) in enumerate(zip(leaf.dims, arrays[leaf.name].shape, strict=True))
        if dim.symbols and dim.symbols <= asked.keys()
    ]
    for read in program.reads:
        name = leaves[read.input].name
        if name in arrays and read.dim in asked and arrays[name].size > read.element:
            value = int(arrays[name].reshape(-1)[read.element])
            found.append((f"{name}[{read.element}]", asked[read.dim], value, frozenset((read.dim,))))
    faults = [
        f"{what} is {given}, {', '.join(f'{n}={asked[n]}' for n in sorted(symbols))} asks for {wanted}"
        for what, wanted, given, symbols in found
        if wanted != given
    ]
    if faults:
        wrong = sorted({name for _, wanted, given, symbols in found if wanted != given for name in symbols})
        raise OptionError(faults, step=f"leave {', '.join(wrong)} out of the sizes, or give arrays of these sizes")


def describe(outputs: dict[str, Any]) -> None:
    """A table of the outputs: shape, dtype, range and mean, and how much is not finite."""
    import numpy as np

    from tilewright.cli.tables import show

    rows: list[Sequence[Any]] = []
    for name, value in outputs.items():
        array = _array(value)
        if array is None:
            rows.append((name, "", type(value).__name__, value, "", "", ""))
            continue
        wide = array.astype(np.float64)
        finite = wide[np.isfinite(wide)]
        figures = [f"{f(finite):.6g}" for f in (np.min, np.mean, np.max)] if finite.size else ["", "", ""]
        rows.append((name, list(array.shape), array.dtype.name, *figures, wide.size - finite.size))
    show(("output", "shape", "dtype", "min", "mean", "max", "not finite"), rows, numbers=(3, 4, 5, 6))


def save(path: Path, outputs: dict[str, Any]) -> None:
    """Writes the outputs as .npz; bf16, which the format does not know, as f32."""
    import numpy as np

    from tilewright.cli.progress import say
    from tilewright.cli.writing import writing

    arrays = {name: array for name, value in outputs.items() if (array := _array(value)) is not None}
    arrays = {n: a.astype(np.float32) if a.dtype.name == "bfloat16" else a for n, a in arrays.items()}
    # to a file object: numpy adds .npz to a bare path that lacks it
    with writing("-o", path), open(path, "wb") as file:
        np.savez(file, allow_pickle=False, **arrays)
    say(f"wrote {path}: {', '.join(arrays)}")


def _array(value: Any) -> NDArray[Any] | None:
    """A tensor or array as an array; None for a size or another constant."""
    import numpy as np

    if isinstance(value, np.ndarray):
        return value
    if not hasattr(value, "detach"):
        return None
    detached = value.detach()
    found: NDArray[Any] = (detached.float() if str(detached.dtype) == "torch.bfloat16" else detached).numpy()
    return found
