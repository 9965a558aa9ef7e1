"""What is wrong with a pipeline's text, where, and the text mended where that is plain."""

from __future__ import annotations

import re
from collections.abc import Container
from typing import Final

from tilewright.errors import ParseError

_NAME: Final = r"[a-z][a-z0-9-]*"
_BEGIN: Final = re.compile(rf"\s*(?P<name>{_NAME})?\s*(?P<options>\{{[^{{}}]*\}})?\s*")
_NEXT: Final = re.compile(rf",\s*(?P<name>{_NAME})")
_SHOWN: Final = 40
_FORM: Final = "write it as name{option=value option=value},name"


def pipeline_fault(text: str, position: int, known: Container[str]) -> ParseError:
    """The error for a text whose pass at `position` does not parse. known: names of passes, by which it is guessed
    where options end that nobody has closed.
    """
    begin = _BEGIN.match(text, position)
    assert begin is not None, "what it looks for may be empty"
    at = begin.end()
    if begin["name"] is None:
        return _fault("a pass's name is missing", text, at if begin["options"] is None else begin.start("options"))
    if text[at] == "}":
        return _fault("'}' closes nothing", text, at)
    if begin["options"] is not None or text[at] != "{":
        step = f"write {text[:at].rstrip()},{text[at:]}" if text[at].isalpha() else _FORM
        return _fault("',' is missing", text, at, step)
    end = text.find("{", at + 1)
    until = len(text) if end < 0 else text.rfind(",", at, end)
    for follows in _NEXT.finditer(text, at):
        if follows["name"] in known:
            until = min(until, follows.start())
    until = len(text[: max(until, at + 1)].rstrip())
    mended = f"{text[:until]}}}{text[until:]}"
    return _fault("'}' is missing", text, until, f"write {mended}" if "}{" not in mended else _FORM)


def _fault(what: str, text: str, at: int, step: str = _FORM) -> ParseError:
    before = text[max(0, at - _SHOWN) : at]
    place = f"after {before!r}" if before else f"before {text[:_SHOWN]!r}"
    return ParseError(f"pipeline: {what} at column {at + 1}, {place}", step=step)
