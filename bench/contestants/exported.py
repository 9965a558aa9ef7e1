"""Runtimes that take the model as ONNX, exported once with its batch and tokens open."""

from __future__ import annotations

import os
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.cases import ATTENTION, Case

# Its export alone takes minutes and gigabytes; of attention, these runtimes keep every logit.
_NOT_EXPORTED = frozenset({"llama-0.5b", *(case.model for case in ATTENTION)})


class _Exported(ABC):
    """A model's ONNX file, and the runtime's own form of it."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="tilewright-bench-")
        self._made: dict[tuple[str, str], tuple[Any, float]] = {}

    def loaded(self, case: Case) -> tuple[Any, float]:
        """The model in the runtime, and the seconds that export and loading took."""
        key = case.model, case.dtype
        if key not in self._made:
            begin = time.perf_counter()
            path = Path(self._folder.name) / f"{case.model}.onnx"
            if not path.exists():
                export(case, path)
            model = self.load(path, case)
            self._made[key] = model, time.perf_counter() - begin
        return self._made[key]

    @abstractmethod
    def load(self, path: Path, case: Case) -> Any:
        """The program of an ONNX file."""


class OnnxRuntime(_Exported):
    """ONNX Runtime's CPU provider, every optimisation on. It has no bf16 products on CPUs."""

    @staticmethod
    def takes(case: Case) -> bool:
        return case.dtype == "f32" and case.model not in _NOT_EXPORTED

    def load(self, path: Path, case: Case) -> Any:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.intra_op_num_threads = len(os.sched_getaffinity(0))
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def prepare(self, case: Case) -> dict[str, Any]:
        import onnxruntime

        return {"cold": self.loaded(case)[1], "version": onnxruntime.__version__}

    def call(self, case: Case) -> Callable[[], Any]:
        from bench.models import arguments

        session = self.loaded(case)[0]
        given = {name: tensor.numpy() for name, tensor in arguments(case).items()}
        return lambda: session.run(None, given)


class OpenVino(_Exported):
    """OpenVINO's CPU plugin for one request at a time; bf16 is its inference precision."""

    @staticmethod
    def takes(case: Case) -> bool:
        return case.model not in _NOT_EXPORTED

    def load(self, path: Path, case: Case) -> Any:
        import openvino

        settings = {
            "INFERENCE_PRECISION_HINT": case.dtype,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": len(os.sched_getaffinity(0)),
        }
        return openvino.Core().compile_model(path, "CPU", settings)

    def prepare(self, case: Case) -> dict[str, Any]:
        import openvino

        return {"cold": self.loaded(case)[1], "version": openvino.__version__.partition("-")[0]}

    def call(self, case: Case) -> Callable[[], Any]:
        from bench.models import arguments

        request = self.loaded(case)[0].create_infer_request()
        given = {name: tensor.numpy() for name, tensor in arguments(case).items()}
        return lambda: request.infer(given)


def export(case: Case, path: Path) -> None:
    """Writes the case's model, open in the axes that our own program is open in."""
    import torch

    from bench.models import axes, build, example

    torch.onnx.export(
        build(case), (), path, kwargs=example(case), dynamo=True, verbose=False,
        dynamic_shapes=axes(case, lambda name, lowest, highest: torch.export.Dim.DYNAMIC),
    )  # fmt: skip
