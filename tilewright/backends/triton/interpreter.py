"""Printed kernels run by Triton's own interpreter on arrays: `InterpretedKernels`, and the process behind it.

Triton decides when it is imported whether it interprets, and then for all kernels; so it does in a process of its own,
`python -m tilewright.backends.triton.interpreter`. Right in f32 and f16; its dot of bf16 is not.
"""

from __future__ import annotations

import importlib.util
import io
import os
import struct
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np

from tilewright.errors import ToolchainError

Array = np.ndarray[Any, np.dtype[Any]]
_LENGTH = struct.Struct("<Q")


class InterpretedKernels:
    """Runs kernels in a process of its own; use it in a `with`."""

    def __enter__(self) -> InterpretedKernels:
        root = str(Path(__file__).resolve().parents[3])
        path = os.pathsep.join([root, *filter(os.path.isabs, sys.path)])
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "tilewright.backends.triton.interpreter"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path, "TRITON_INTERPRET": "1"},
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
        packed = io.BytesIO()
        given = {f"b{n}": a for n, a in enumerate(buffers)}
        given |= {"head": np.array([outputs, programs, *dims], np.int64)}
        given |= {"source": np.array(source), "symbol": np.array(symbol)}
        np.savez(packed, allow_pickle=False, **given)
        _send(stdin, packed.getvalue())
        answer = _receive(stdout)
        if answer is None:
            raise ToolchainError("Triton's interpreter has ended", step="run the kernel again and read its stderr")
        with np.load(io.BytesIO(answer), allow_pickle=False) as found:
            if "error" in found:
                raise ToolchainError(
                    f"Triton's interpreter fails in kernel {symbol}: {found['error']}", step="read the kernel's source"
                )
            return [found[f"b{n}"] for n in range(outputs)]


def _send(pipe: IO[bytes], body: bytes) -> None:
    pipe.write(_LENGTH.pack(len(body)) + body)
    pipe.flush()


def _receive(pipe: IO[bytes]) -> bytes | None:
    head = pipe.read(_LENGTH.size)
    return pipe.read(_LENGTH.unpack(head)[0]) if len(head) == _LENGTH.size else None


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

    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not land among the answers
    torch.set_num_threads(1)
    known: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="tilewright-triton-") as folder:
        while (request := _receive(sys.stdin.buffer)) is not None:
            with np.load(io.BytesIO(request), allow_pickle=False) as given:
                outputs, programs, *dims = given["head"].tolist()
                source, symbol = str(given["source"]), str(given["symbol"])
                count = sum(name[0] == "b" and name[1:].isdigit() for name in given.files)
                tensors = [torch.from_numpy(given[f"b{n}"].copy()) for n in range(count)]
            packed = io.BytesIO()
            try:
                if source not in known:
                    known[source] = load_source(source, symbol, Path(folder))
                if programs:
                    known[source][(programs,)](*tensors, *dims)
                results = tensors[len(tensors) - outputs :]
                np.savez(packed, allow_pickle=False, **{f"b{n}": t.numpy() for n, t in enumerate(results)})
            except Exception as error:  # noqa: BLE001  every fault of a kernel is the answer
                packed = io.BytesIO()
                np.savez(packed, error=np.array(f"{type(error).__name__}: {error}"))
            _send(answers, packed.getvalue())


if __name__ == "__main__":
    _serve()
