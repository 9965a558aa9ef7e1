"""Names of keyword arguments that nobody takes are refused in one way, with the nearest that is taken."""

from __future__ import annotations

import copy
import dataclasses
import inspect
from typing import Any

import pytest

from tilewright.errors import OptionError
from tilewright.option_names import known_options


@known_options()
@dataclasses.dataclass(frozen=True)
class Layout:
    page: int = 16
    budget: int | None = None


def served(*, salt: str = "", key: int = 0) -> None:
    """Takes what `answer` hands on."""


@known_options(served, within={"layout": Layout})
def answer(text: str, *, stop: str = "", layout: Layout | None = None, **more: Any) -> tuple[Any, ...]:
    """Says what it was given."""
    return text, stop, layout, more


def refusal(call: Any, *args: Any, **given: Any) -> str:
    with pytest.raises(OptionError) as raised:
        call(*args, **given)
    return str(raised.value).removeprefix("TW008 wrong option: ")


def test_the_nearest_name_is_meant() -> None:
    assert refusal(answer, "x", stopp="a") == "answer() has no option 'stopp'\n  next: did you mean 'stop'?"
    assert refusal(answer, "x", keys=1) == "answer() has no option 'keys'\n  next: did you mean 'key'?"
    assert refusal(Layout, pages=3) == "Layout() has no option 'pages'\n  next: did you mean 'page'?"
    both = (
        "2 problems\n  - Layout() has no option 'pages'\n  - Layout() has no option 'zzz'\n  next: did you mean 'page'?"
    )
    assert refusal(Layout, pages=3, zzz=1) == both


def test_where_none_is_near_all_are_listed_but_those_given_by_their_place() -> None:
    assert refusal(answer, "x", zzz=1).endswith("next: it has key, layout, salt, stop")
    assert refusal(Layout, 3, zzz=1).endswith("next: it has budget")
    assert refusal(Layout, 3, 4, zzz=1).endswith("next: leave out zzz")


def test_what_belongs_into_an_option_is_written_there() -> None:
    said = "answer() has no option 'budget'\n  next: write layout=tw.Layout(budget=...)"
    assert refusal(answer, "x", budget=3) == said


def test_what_is_taken_arrives_and_nothing_else_of_it_changes() -> None:
    assert answer("x", salt="s", stop="a") == ("x", "a", None, {"salt": "s"})
    layout = Layout(budget=3)
    assert dataclasses.replace(layout, page=2) == Layout(2, 3)
    assert copy.deepcopy(layout) == layout
    assert list(inspect.signature(Layout).parameters) == ["page", "budget"]
    assert (answer.__name__, answer.__doc__) == ("answer", "Says what it was given.")
    with pytest.raises(TypeError, match="text"):
        answer()
