"""What passes are told of a compilation: plain data, so that a program's facts give it back where there is no IR."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Final

from tilewright.errors import PassOptionError

OBJECTIVES: Final = ("time", "io")


@dataclass(frozen=True, slots=True)
class CompileOptions:
    """The options of a compilation that passes read.

    precision: "model", or the dtype that operands of products are rounded to. determinism: what bits may depend on;
    under "batch" every schedule keeps the order in which the machine's family adds. objective: what schedules are
    chosen by, predicted "time" or the bytes that move ("io").
    """

    precision: str = "model"
    determinism: str = "batch"
    objective: str = "time"

    def __post_init__(self) -> None:
        if self.objective not in OBJECTIVES:
            raise PassOptionError(
                f"objective={self.objective!r} is not one of {', '.join(OBJECTIVES)}", step="write objective='time'"
            )

    def to_dict(self) -> dict[str, str]:
        return asdict(self)
