"""The passes run again on the graph as it was captured, to show the module after one of them."""

from __future__ import annotations

from tilewright.compiler.code import Code
from tilewright.errors import PassOptionError
from tilewright.ir.backend import machine_of
from tilewright.ir.compile_options import CompileOptions
from tilewright.ir.module import dim_space, parse_module, print_module
from tilewright.ir.passing import Context, Pipeline, run_pipeline
from tilewright.passes.pipeline import parse_pipeline
from tilewright.runtime.facts import Facts


def text_after(code: Code, facts: Facts, after: str) -> str:
    """The module's text after a pass.

    after: a pass of the pipeline that compiled the program; "canonicalize:2" is the second of that name.
    Raises PassOptionError for a name that the pipeline has not, or a pass that is no longer installed.
    """
    pipeline = parse_pipeline(facts.pipeline)
    name, _, number = after.partition(":")
    places = [i for i, p in enumerate(pipeline.passes) if p.name == name]
    which = int(number) if number.isdecimal() else 1
    if not places or not 1 <= which <= len(places) or (number and not number.isdecimal()):
        raise PassOptionError(
            f"no pass {after!r} ran on this program", step=f"use one of {', '.join(p.name for p in pipeline.passes)}"
        )
    module = parse_module(code.texts["captured"], "captured")
    _, machine = machine_of(code.program.target)
    ctx = Context(machine=machine, dims=dim_space(module), options=CompileOptions(**facts.options))
    run_pipeline(Pipeline(pipeline.passes[: places[which - 1] + 1]), module, ctx)
    return print_module(module)
