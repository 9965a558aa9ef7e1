"""The types of the queue dialect: queues of units, tasks, event counters with thresholds, and flags.

A *task* is work for one unit, taken from that unit's *queue* in order. It starts when its dependency holds: an *event*
counter has reached a threshold. When it ends it triggers one event, which counts up. A *flag* orders two queues of one
core without counting: set by the producer, waited for and cleared by the consumer.
"""

from __future__ import annotations

from xdsl.ir import Data, Dialect, ParametrizedAttribute, TypeAttribute
from xdsl.irdl import irdl_attr_definition
from xdsl.parser import AttrParser
from xdsl.printer import Printer

from tilewright.errors import IRError

UNITS = ("matrix", "vector", "transfer")


class _UnitType(Data[str], TypeAttribute):
    """Shared by the types that belong to one kind of unit."""

    @classmethod
    def parse_parameter(cls, parser: AttrParser) -> str:
        with parser.in_angle_brackets():
            unit = parser.parse_identifier()
        if unit not in UNITS:
            raise IRError(f"no unit is called {unit!r}", step=f"use one of {', '.join(UNITS)}")
        return unit

    def print_parameter(self, printer: Printer) -> None:
        with printer.in_angle_brackets():
            printer.print_string(self.data)


@irdl_attr_definition
class QueueType(_UnitType):
    """`!queue.queue<matrix>`: the ordered work of one unit."""

    name = "queue.queue"


@irdl_attr_definition
class TaskType(_UnitType):
    """`!queue.task<vector>`: one piece of work for a unit of that kind."""

    name = "queue.task"


@irdl_attr_definition
class EventType(Data[int], TypeAttribute):
    """`!queue.event<4>`: a counter that is complete when it has been triggered that many times."""

    name = "queue.event"

    @classmethod
    def parse_parameter(cls, parser: AttrParser) -> int:
        with parser.in_angle_brackets():
            threshold = parser.parse_integer()
        if threshold < 1:
            raise IRError(f"an event's threshold is 1 or more, got {threshold}", step="count the tasks that trigger it")
        return threshold

    def print_parameter(self, printer: Printer) -> None:
        with printer.in_angle_brackets():
            printer.print_string(str(self.data))


@irdl_attr_definition
class FlagType(ParametrizedAttribute, TypeAttribute):
    """`!queue.flag`: set by one queue, waited for and cleared by another of the same core."""

    name = "queue.flag"


QUEUE = Dialect("queue", [], [QueueType, TaskType, EventType, FlagType])
