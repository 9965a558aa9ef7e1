"""Printed kernels run by Triton's own interpreter on arrays: `InterpretedKernels`, and the process behind it.

Triton decides when it is imported whether it interprets, and then for all kernels; so it does in a process of its own,
`python -m tilewright.backends.triton.interpreter`. Right in f32 and f16; its dot of bf16 is not.
"""

from __future__ import annotations

import importlib.util
import io
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from tilewright.backends.frames import received, send
from tilewright.backends.module_process import start_module
from tilewright.errors import ToolchainError

Array = np.ndarray[Any, np.dtype[Any]]


class InterpretedKernels:
    """Runs kernels in a process of its own; use it in a `with`."""

    def __enter__(self) -> InterpretedKernels:
        self._process = start_module(
            "tilewright.backends.triton.interpreter", environment={**os.environ, "TRITON_INTERPRET": "1"}
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        self._process.wait()

    def run(
        self, source: str, symbol: str, buffers: Sequence[Array], outputs: int, dims: Sequence[int], programs: int
    ) -> list[Array]:
        """The outputs (the last `outputs` buffers, as they are after the launch). Raises ToolchainError if it fails."""
        if any(a.dtype.kind == "V" for a in buffers):
            raise ToolchainError("Triton's interpreter multiplies no bf16", step="run the kernel in f32 or f16")
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        head = {
            "source": source,
            "symbol": symbol,
            "outputs": outputs,
            "programs": programs,
            "dims": list(map(int, dims)),
        }
        send(stdin.fileno(), head, _body(buffers))
        answer = received(stdout.read)
        if answer is None:
            raise ToolchainError("Triton's interpreter has ended", step="run the kernel again and read its stderr")
        told, body = answer
        if told:
            raise ToolchainError(
                f"Triton's interpreter fails in kernel {symbol}: {told['error']}", step="read the kernel's source"
            )
        return _arrays(body)


def _body(arrays: Sequence[Array]) -> bytes:
    packed = io.BytesIO()
    np.savez(packed, *arrays, allow_pickle=False)
    return packed.getvalue()


def _arrays(body: bytes) -> list[Array]:
    with np.load(io.BytesIO(body), allow_pickle=False) as found:
        return [found[name] for name in found.files]


def load_source(source: str, symbol: str, folder: Path) -> Any:
    """The function of a printed source: a file of its own, because Triton reads a function's text from its file."""
    path = folder / f"{symbol}.py"
    path.write_text(source, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(f"tilewright_printed_{symbol}", path)
    if spec is None or spec.loader is None:
        raise ToolchainError(f"{path} is no module", step="free some disk space")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, symbol)


def _keep_predicates() -> None:
    """Makes a predicate that is stretched over lanes stay one: 3.9 gives it the dtype of what was compared."""
    from triton.runtime import interpreter

    def create_splat(builder: Any, ret_ty: Any, arg: Any) -> Any:
        data = np.full(ret_ty.shape, arg.data.reshape(-1)[0], arg.data.dtype)
        return interpreter.TensorHandle(data, ret_ty.scalar)

    interpreter.InterpreterBuilder.create_splat = create_splat


def _serve() -> None:
    import torch

    _keep_predicates()

    answers = os.dup(1)
    os.dup2(2, 1)  # what a library prints must not land among the answers
    torch.set_num_threads(1)
    known: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="tilewright-triton-") as folder:
        while message := received(lambda count: os.read(0, count)):
            head, body = message
            source, told = head["source"], {}
            tensors = [torch.from_numpy(a.copy()) for a in _arrays(body)]
            try:
                if source not in known:
                    known[source] = load_source(source, head["symbol"], Path(folder))
                if head["programs"]:
                    known[source][(head["programs"],)](*tensors, *head["dims"])
                results = [t.numpy() for t in tensors[len(tensors) - head["outputs"] :]]
            except Exception as error:  # noqa: BLE001  every fault of a kernel is the answer
                told, results = {"error": f"{type(error).__name__}: {error}"}, []
            send(answers, told, _body(results))


if __name__ == "__main__":
    _serve()
