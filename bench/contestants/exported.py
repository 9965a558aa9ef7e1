"""Runtimes that take the model as ONNX, exported once with its batch and tokens open."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.cases import Case


class _Exported:
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

    def load(self, path: Path, case: Case) -> Any:
        raise NotImplementedError


class OnnxRuntime(_Exported):
    """ONNX Runtime's CPU provider, every optimisation on. It has no bf16 products on CPUs."""

    dtypes = ("f32",)

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

    dtypes = ("f32", "bf16")

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

    from bench.models import arguments, build

    given = arguments(Case(case.model, 2, 8, "f32"))
    sizes = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    torch.onnx.export(
        build(case), (), path, kwargs=given, dynamic_shapes=dict.fromkeys(given, sizes), dynamo=True, verbose=False
    )
