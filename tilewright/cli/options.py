"""The options that several verbs share, each declared once, and the compiled object they lead to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from tilewright.errors import OptionError

if TYPE_CHECKING:
    from tilewright.cli.models import Model
    from tilewright.compiler.compiled import Compiled

ModelArgument = Annotated[
    str, typer.Argument(metavar="MODEL", help="A .pt2 file, a model directory, or module:callable.", show_default=False)
]
SourceArgument = Annotated[
    str, typer.Argument(metavar="MODEL|ARTIFACT", help="What `compile` takes, or what it wrote.", show_default=False)
]
Dims = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=AXES",
        help='Which axes vary: "ids=batch:1..64,tokens:1..256". May be repeated.',
        show_default=False,
    ),
]
Target = Annotated[str, typer.Option(help="cpu, cpu:avx2, ..., or a list in order of preference: npu:x,cpu.")]
Precision = Annotated[str, typer.Option(help="model, f32 or bf16: what operands of matrix products are rounded to.")]
Passes = Annotated[
    str | None, typer.Option(metavar="PIPELINE", help="A pipeline in place of the default one.", show_default=False)
]
Determinism = Annotated[str | None, typer.Option(help="free, run or batch.", show_default=False)]
Threads = Annotated[int | None, typer.Option(min=1, help="At most so many threads a call.", show_default="all cores")]
MemoryLimit = Annotated[
    str | None,
    typer.Option(metavar="SIZE", help="Bytes that one call may need: 500000000B, 512MiB, 2GiB.", show_default=False),
]
Cache = Annotated[
    str | None, typer.Option(metavar="DIR|off", help="The cache's folder, or off.", show_default="the user's")
]
At = Annotated[
    str | None, typer.Option(metavar="SIZES", help="Sizes of the dims: batch=8,tokens=82.", show_default=False)
]
Random = Annotated[
    int | None, typer.Option(metavar="SEED", min=0, help="Draw the inputs that are not given.", show_default=False)
]
Inputs = Annotated[
    list[str] | None,
    typer.Option("--input", metavar="NAME=FILE.npy", help="An input's value. May be repeated.", show_default=False),
]


# What a call may be told of an artifact, and the values that options of compiling have where nobody gave them.
_FOR_CALLS: Final = ("threads", "memory_limit")
_DEFAULTS: Final = {"target": "cpu", "precision": "model"}


def compile_options(**given: Any) -> dict[str, Any]:
    """compile()'s options from the command line's: those not given are left out."""
    options = {name: value for name, value in given.items() if value is not None}
    if "target" in options and "," in options["target"]:
        options["target"] = [part.strip() for part in options["target"].split(",")]
    if "memory_limit" in options:
        from tilewright.runtime.memory import parse_bytes

        options["memory_limit"] = parse_bytes(options["memory_limit"])
    return options


def compile_given(model: Model, dims: Sequence[str] | None, options: dict[str, Any]) -> Compiled:
    """Compiles an opened model for the dims given, or those assumed, which are then said; progress on a terminal."""
    from tilewright.cli.dims_text import parse_dims
    from tilewright.cli.progress import say, watching
    from tilewright.compiler import entry

    declared = parse_dims(dims or [])
    if model.note:
        assumed = {} if declared else {dim: None for axes in (model.dims or {}).values() for dim in axes}
        say("; ".join([model.note, *map(str, assumed)]))
    with watching() as progress:
        return entry.compile_model(
            model.model, model.args, model.kwargs, declared or model.dims, progress=progress, **options
        )


def open_source(text: str, dims: Sequence[str] | None, options: dict[str, Any]) -> Compiled:
    """A compiled model from an artifact, or from a model that is compiled now."""
    from tilewright.cli.models import is_artifact, open_model

    if is_artifact(text):
        # those with a default are told from it: the defaults themselves ask for nothing
        asked = {"dims": dims, **{n: v for n, v in options.items() if v != _DEFAULTS.get(n)}}
        late = [f"--{name}" for name, value in asked.items() if value not in (None, []) and name not in _FOR_CALLS]
        if late:
            raise OptionError(
                f"{text} is an artifact: {', '.join(late)} counts for a MODEL only, when it is compiled",
                step=f"leave {', '.join(late)} out, or give the model it was compiled from",
            )
        import tilewright

        return tilewright.load(text, **{n: v for n, v in options.items() if n in _FOR_CALLS})
    return compile_given(open_model(text), dims, options)
