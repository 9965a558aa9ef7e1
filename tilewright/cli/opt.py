"""`tilewright opt FILE -p PIPELINE`: passes on IR text, as mlir-opt runs them. It knows no model: text in, text out."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from tilewright.cli.writing import require_place, writing
from tilewright.errors import IRError, OptionError, PassOptionError

if TYPE_CHECKING:
    from xdsl.dialects.builtin import ModuleOp

    from tilewright.ir.backend import Backend
    from tilewright.ir.passing import Instrument, Pipeline

_MODES: Final = ("ir", "numeric")

File = Annotated[str, typer.Argument(metavar="[FILE]", help="IR text; - or nothing for stdin.", show_default=False)]
PassText = Annotated[
    str,
    typer.Option(
        "-p",
        "--passes",
        metavar="PIPELINE",
        help="'canonicalize,fuse{max-ops=8}', or 'default': all that compile runs for the target; none: only parse and "
        "verify.",
        show_default=False,
    ),
]
Output = Annotated[
    Path | None, typer.Option("-o", "--output", metavar="FILE", help="Where the text goes.", show_default="stdout")
]
PrintAfter = Annotated[
    str | None,
    typer.Option(
        metavar="all|changed|PASS",
        help="Print the IR on stderr after every pass, those that changed it, or one.",
        show_default=False,
    ),
]
VerifyEach = Annotated[
    str | None,
    typer.Option(
        "--verify-each",
        metavar="[=numeric]",
        show_default=False,
        help="Verify the IR after each pass, not only at the end; numeric: run it before and after, on random inputs.",
    ),
]
Timed = Annotated[bool, typer.Option("--time", help="Print each pass's time on stderr.")]
Remarks = Annotated[bool, typer.Option("--remarks", help="Print on stderr what passes did and refused, and where.")]
Target = Annotated[str, typer.Option(help="The machine that passes ask: cpu, cpu:avx2, ...")]


class OptCommand(typer.core.TyperCommand):
    """`--verify-each` alone means `--verify-each=ir`: an option whose value may be left out."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, [f"{a}=ir" if a == "--verify-each" else a for a in args])


def opt(
    file: File = "-",
    pipeline: PassText = "",
    output: Output = None,
    print_after: PrintAfter = None,
    verify_each: VerifyEach = None,
    timed: Timed = False,
    remarks: Remarks = False,
    target: Target = "cpu",
) -> None:
    """Runs passes on IR text and prints the result."""
    from tilewright.cli.instruments import Clock, Idle, Printer
    from tilewright.ir.backend import resolve_target
    from tilewright.ir.module import dim_space, parse_module, print_module
    from tilewright.ir.passing import Context, run_pipeline

    require_place("-o", output, "out.mlir")
    if verify_each not in (None, *_MODES):
        raise OptionError(
            f"--verify-each={verify_each} is not one of {', '.join(_MODES)}", step="write --verify-each=numeric"
        )
    backend, machine = resolve_target(target)
    parsed = read_pipeline(pipeline, backend)
    if print_after not in (None, "all", "changed") and print_after not in {p.name for p in parsed.passes}:
        names = ", ".join(dict.fromkeys(p.name for p in parsed.passes)) or "no passes"
        raise PassOptionError(f"--print-after={print_after}: the pipeline has {names}", step="write --print-after=all")
    text, name = read(file)
    module = parse_module(text, name)
    ctx = Context(machine=machine, dims=dim_space(module))
    clock = Clock()
    instruments: list[Instrument] = [Idle(sys.stderr)]
    if print_after is not None:
        instruments.append(Printer(print_after, sys.stderr))
    if verify_each == "numeric":
        from tilewright.compiler.verify_each import NumericCheck

        instruments.append(NumericCheck())
    try:
        # the clock last, that is innermost: it times passes, not those who watch them
        run_pipeline(parsed, module, ctx, instruments=(*instruments, clock), verify=verify_each is not None)
        if verify_each is None:
            _verify(module)
    finally:
        if timed:
            clock.show()
        if remarks:
            show_remarks(ctx)
    result = print_module(module)
    if output is None:
        sys.stdout.write(result)
        return
    with writing("-o", output):
        output.write_text(result, encoding="utf-8")


def _verify(module: ModuleOp) -> None:
    """IRError for what passes left that nobody has looked at yet."""
    from tilewright.ir.verifier import verify

    try:
        verify(module)
    except IRError as fault:
        raise IRError(fault.problems, step="run it again with --verify-each, which names the pass") from fault


def read(file: str) -> tuple[str, str]:
    """A file's text, or stdin's, and the name that errors call it by."""
    if file == "-":
        return sys.stdin.read(), "<stdin>"
    try:
        return Path(file).read_text(encoding="utf-8"), file
    except (OSError, UnicodeDecodeError) as fault:
        reason = getattr(fault, "strerror", None) or str(fault)
        raise OptionError(
            f"{file} cannot be read: {reason}", step="give the path of a file with IR text, or - for stdin"
        ) from fault


def read_pipeline(text: str, backend: Backend) -> Pipeline:
    """A pipeline's text as passes; "default" is the one that compile runs for the backend."""
    from tilewright.compiler.pipelines import whole_pipeline
    from tilewright.passes.pipeline import parse_pipeline

    return whole_pipeline(backend) if text.strip() == "default" else parse_pipeline(text)


def show_remarks(ctx: Any) -> None:
    """What the passes did and what they left, on stderr."""
    for done in ctx.applied:
        saved = f", saves {done.saves} bytes" if str(done.saves) != "0" else ""
        print(f"{_place(done.where)}{done.pass_name}: {done.op}: {done.what}{saved}", file=sys.stderr)
    for left in ctx.refused:
        print(f"{_place(left.where)}{left.pass_name}: {left.op}: refused: {left.reason}", file=sys.stderr)


def _place(where: str | None) -> str:
    return f"{where}: " if where else ""
