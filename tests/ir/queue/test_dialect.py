"""The queue dialect's types print and parse back, and refuse what is not a unit or a threshold."""

from __future__ import annotations

import pytest
from xdsl.parser import Parser

from tilewright.errors import TilewrightError
from tilewright.ir.module import new_context
from tilewright.ir.queue.dialect import EventType, FlagType, QueueType, TaskType


@pytest.mark.parametrize("kind", [QueueType("matrix"), TaskType("transfer"), EventType(4), FlagType()], ids=str)
def test_types_round_trip(kind: QueueType | TaskType | EventType | FlagType) -> None:
    assert Parser(new_context(), str(kind)).parse_attribute() == kind


@pytest.mark.parametrize("text", ["!queue.queue<scalar>", "!queue.event<0>", "!queue.event<-3>"])
def test_what_no_machine_has_is_refused(text: str) -> None:
    with pytest.raises(TilewrightError, match="TW020"):
        Parser(new_context(), text).parse_attribute()
