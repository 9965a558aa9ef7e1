"""PyTorch: eager, and compiled by Inductor; each with one thread and with all, of which the better counts."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

from bench.cases import Case


class Eager:
    """PyTorch as it comes. In bf16 the whole model is bf16."""

    @staticmethod
    def takes(case: Case) -> bool:
        return True

    def __init__(self) -> None:
        self._models: dict[tuple[str, str], Any] = {}

    def model(self, case: Case) -> Any:
        """The module of a case's model and dtype."""
        from bench.models import build, in_dtype

        key = case.model, case.dtype
        if key not in self._models:
            self._models[key] = in_dtype(build(case), case.dtype)
        return self._models[key]

    def prepare(self, case: Case) -> dict[str, Any]:
        import torch

        self.model(case)
        return {"threads": torch.get_num_threads(), "version": torch.__version__}

    def call(self, case: Case) -> Callable[[], Any]:
        return _inference(self.model(case), case)

    def ways(self, case: Case) -> Iterator[Callable[[], Any]]:
        """The same call with one thread and with as many as torch chose: its OpenMP team stalls where neighbours take a
        core, and no user would keep the slower setting.
        """
        import torch

        every = torch.get_num_threads()
        try:
            for count in sorted({1, every}):
                torch.set_num_threads(count)
                yield self.call(case)
        finally:
            torch.set_num_threads(every)


class Inductor(Eager):
    """`torch.compile`, once a case: sizes are constants to it, and so are the weights. It needs a C++ compiler."""

    def __init__(self) -> None:
        super().__init__()
        self._compiled: dict[Case, Any] = {}

    def prepare(self, case: Case) -> dict[str, Any]:
        import torch

        told = super().prepare(case)
        begin = time.perf_counter()
        if case not in self._compiled:
            torch._dynamo.reset()
            compiled = torch.compile(self.model(case), dynamic=False, options={"freezing": True})
            self._compiled[case] = compiled
            _inference(compiled, case)()
        return {**told, "cold": time.perf_counter() - begin}

    def call(self, case: Case) -> Callable[[], Any]:
        return _inference(self._compiled[case], case)


def _inference(model: Any, case: Case) -> Callable[[], Any]:
    import torch

    from bench.models import arguments

    given = arguments(case)

    def run() -> Any:
        with torch.inference_mode():
            return model(**given)

    return run
