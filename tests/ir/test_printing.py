"""The short ways of the printer give the text that xDSL's own ways give."""

from __future__ import annotations

import io

import hypothesis
import pytest
from xdsl.dialects.builtin import ModuleOp
from xdsl.printer import Printer

from tests.ir.random_modules import modules
from tilewright.ir.module import print_module
from tilewright.ir.printing import PlainPrinter


@pytest.mark.parametrize(
    "text", ["", "plain", 'a "quoted" one', "back\\slash", "two\nlines", "tab\t", "\x7f", "naïve", "§"]
)
def test_strings_are_escaped_as_xdsl_escapes_them(text: str) -> None:
    ours, theirs = io.StringIO(), io.StringIO()
    PlainPrinter(ours).print_string_literal(text)
    Printer(theirs).print_string_literal(text)
    assert ours.getvalue() == theirs.getvalue()


@hypothesis.given(modules())
@hypothesis.settings(max_examples=10)
def test_modules_print_as_with_xdsls_own_printer(module: ModuleOp) -> None:
    out = io.StringIO()
    Printer(out).print_op(module)
    assert print_module(module) == f"{out.getvalue()}\n"
