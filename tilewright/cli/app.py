"""The verbs by name. Their modules import nothing heavy."""

from __future__ import annotations

from typing import Annotated

import typer

from tilewright import __version__
from tilewright.cli.bench import bench
from tilewright.cli.cache import cache
from tilewright.cli.chat import chat
from tilewright.cli.check import check
from tilewright.cli.compile import compile_model
from tilewright.cli.env import env
from tilewright.cli.eval import evaluate
from tilewright.cli.explain import explain
from tilewright.cli.generate import generate
from tilewright.cli.ops import ops
from tilewright.cli.opt import OptCommand, opt
from tilewright.cli.passes import passes
from tilewright.cli.profile import profile
from tilewright.cli.report import report
from tilewright.cli.run import run
from tilewright.cli.targets import targets

# Plain help text: rich's takes as long to import as all the rest.
app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"tilewright {__version__}")
        raise typer.Exit


@app.callback()
def _top(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_version)
    ] = False,
) -> None:
    """Compiles models into kernels it wrote itself: says what moves, then moves less."""


app.command("compile")(compile_model)
app.command("run")(run)
app.command("check")(check)
app.command("report")(report)
app.command("profile")(profile)
app.command("generate")(generate)
app.command("chat")(chat)
app.command("eval")(evaluate)
app.command("bench")(bench)
app.command("opt", cls=OptCommand)(opt)
app.command("ops")(ops)
app.command("passes")(passes)
app.command("targets")(targets)
app.add_typer(cache, name="cache")
app.command("env")(env)
app.command("explain")(explain)
