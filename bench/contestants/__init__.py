"""Who takes part. A peer has `takes`, `prepare` and `call`; add it to CONTESTANTS and it runs in every round."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from bench.cases import Case
from bench.contestants.exported import OnnxRuntime, OpenVino
from bench.contestants.ours import Tilewright
from bench.contestants.pytorch import Eager, Inductor


class Contestant(Protocol):
    """One way to run the models, alone in its process. What it imports, it imports in its methods."""

    @staticmethod
    def takes(case: Case) -> bool:
        """Whether it has a way to run the case."""

    def prepare(self, case: Case) -> dict[str, Any]:
        """Makes the case ready; what is worth telling of that, such as seconds of compilation."""

    def call(self, case: Case) -> Callable[[], Any]:
        """A function that runs the case once, start to end.

        A peer with settings that no user would keep where they are slower has `ways`, too: one such function for each
        setting, made when its turn comes. Of a round's turn the better setting counts.
        """


CONTESTANTS: dict[str, type[Contestant]] = {
    "tilewright": Tilewright,
    "eager": Eager,
    "inductor": Inductor,
    "onnxruntime": OnnxRuntime,
    "openvino": OpenVino,
}
