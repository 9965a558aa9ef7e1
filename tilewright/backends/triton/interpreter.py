"""Printed kernels run by Triton's own interpreter: `InterpretedKernels`, a device of the grid ABI, and its process.

Triton decides when it is imported whether it interprets, and then for all kernels; so it does in a process of its own,
`python -m tilewright.backends.triton.interpreter`. Memory is shared with it, so that a launch sends places alone. Right
in f32 and f16; its dot of bf16 is not.
"""

from __future__ import annotations

import hashlib
import importlib.util
import mmap
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import numpy as np

from tilewright.backends.frames import received, send
from tilewright.backends.module_process import start_module
from tilewright.errors import ToolchainError

Array = np.ndarray[Any, np.dtype[Any]]
_ALIGNMENT: Final = 64


@dataclass(frozen=True, eq=False, slots=True)
class SharedMemory:
    """Bytes that both processes see; fresh ones are zeros. number: what the other process calls them."""

    number: int
    bytes: Array


class InterpretedKernels:
    """Runs kernels in a process of its own; use it in a `with`. Memory lives until then."""

    def __enter__(self) -> InterpretedKernels:
        self._process = start_module(
            "tilewright.backends.triton.interpreter", environment={**os.environ, "TRITON_INTERPRET": "1"}
        )
        self._files: list[int] = []
        self._sources: dict[str, str] = {}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        self._process.wait()
        for file in self._files:
            os.close(file)

    # --- a device -------------------------------------------------------------------------------------------------

    def allocate(self, size: int) -> SharedMemory:
        """Memory of `size` bytes and a vector's more."""
        room = max(size, 1) + _ALIGNMENT
        file = os.memfd_create("tilewright-interpreted", os.MFD_CLOEXEC)
        self._files.append(file)
        os.ftruncate(file, room)
        found = SharedMemory(len(self._files) - 1, np.frombuffer(mmap.mmap(file, room), np.uint8))
        self._ask({"do": "map", "path": f"/proc/{os.getpid()}/fd/{file}"}, b"")
        return found

    def release(self, memory: SharedMemory) -> None:
        """Gives memory back."""
        self._ask({"do": "unmap", "memory": memory.number}, b"")
        os.ftruncate(self._files[memory.number], 0)

    def write(self, memory: SharedMemory, data: memoryview) -> None:
        """Copies bytes to the start of memory."""
        memory.bytes[: data.nbytes] = np.frombuffer(data, np.uint8)

    def read(self, memory: SharedMemory, into: memoryview) -> None:
        """Copies bytes from the start of memory."""
        into[:] = memory.bytes[: into.nbytes].data

    def copy(self, source: tuple[SharedMemory, int], destination: tuple[SharedMemory, int], size: int) -> None:
        """Copies bytes between memories, from and to offsets."""
        (a, i), (b, j) = source, destination
        b.bytes[j : j + size] = a.bytes[i : i + size]

    def load(self, symbol: str, source: str) -> None:
        """Makes a kernel known by its symbol. Raises ToolchainError for products of bf16."""
        if "tl.dot(" in source and "bfloat16" in source:
            raise ToolchainError("Triton's interpreter multiplies no bf16", step="run the kernel in f32 or f16")
        if self._sources.get(symbol) != source:
            self._ask({"do": "load", "symbol": symbol}, source.encode())
            self._sources[symbol] = source

    def launch(self, symbol: str, places: Sequence[tuple[SharedMemory, int]], dims: Sequence[int]) -> None:
        """Runs a kernel's whole grid. places: where each buffer begins, as memory and an offset in bytes.

        Raises ToolchainError where the interpreter fails.
        """
        where = [(memory.number, offset) for memory, offset in places]
        self._ask({"do": "launch", "symbol": symbol, "places": where, "dims": list(map(int, dims))}, b"")

    def _ask(self, head: Mapping[str, Any], body: bytes) -> None:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        send(stdin.fileno(), dict(head), body)
        answer = received(stdout.read)
        if answer is None:
            raise ToolchainError("Triton's interpreter has ended", step="run the kernel again and read its stderr")
        if answer[0]:
            raise ToolchainError(
                f"Triton's interpreter fails in kernel {head.get('symbol')}: {answer[0]['error']}",
                step="read the kernel's source",
            )

    # --- one kernel on arrays -------------------------------------------------------------------------------------

    def run(self, source: str, buffers: Sequence[Array], outputs: int, dims: Sequence[int]) -> list[Array]:
        """The outputs (the last `outputs` buffers, as they are after the launch). Raises ToolchainError if it fails."""
        starts, end = [], 0
        for array in buffers:
            starts.append(end)
            end += -(-array.nbytes // _ALIGNMENT) * _ALIGNMENT
        memory = self.allocate(end)
        for array, start in zip(buffers, starts, strict=True):
            memory.bytes[start : start + array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        symbol = f"k{hashlib.sha256(source.encode()).hexdigest()[:20]}"
        self.load(symbol, source)
        self.launch(symbol, [(memory, start) for start in starts], dims)
        first = len(buffers) - outputs
        found = [
            memory.bytes[start : start + a.nbytes].copy().view(a.dtype).reshape(a.shape)
            for a, start in zip(buffers[first:], starts[first:], strict=True)
        ]
        self.release(memory)
        return found


def load_source(source: str, symbol: str, folder: Path) -> Any:
    """The module of a printed source: a file of its own, because Triton reads a function's text from its file."""
    path = folder / f"{symbol}.py"
    path.write_text(source, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(f"tilewright_printed_{symbol}", path)
    if spec is None or spec.loader is None:
        raise ToolchainError(f"{path} is no module", step="free some disk space")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _mend() -> None:
    """Mends two things in Triton's interpreter, and makes one fast.

    A predicate that is stretched over lanes stays one: 3.9 gives it the dtype of what was compared. Exclusive or along
    an axis, of which its sorting network is made, is NumPy's, not a Python loop over elements.
    """
    from triton.language import standard
    from triton.runtime import interpreter

    def create_splat(builder: Any, ret_ty: Any, arg: Any) -> Any:
        data = np.full(ret_ty.shape, arg.data.reshape(-1)[0], arg.data.dtype)
        return interpreter.TensorHandle(data, ret_ty.scalar)

    whole = interpreter.ReduceOps.apply_impl

    def apply_impl(reduction: Any, input: Any) -> Any:
        if reduction.combine_fn is not standard._xor_combine:
            return whole(reduction, input)
        (value,) = input if isinstance(input, tuple) else (input,)
        found = np.bitwise_xor.reduce(value.handle.data, axis=reduction.axis, keepdims=reduction.keep_dims)
        return reduction.to_tensor(found, value.dtype)

    interpreter.InterpreterBuilder.create_splat = create_splat
    interpreter.ReduceOps.apply_impl = apply_impl


class _Server:
    """The process's side: mapped memory by number, kernels by symbol."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._memory: list[Any] = []
        self._kernels: dict[str, Any] = {}
        self._does: dict[str, Callable[[dict[str, Any], bytes], None]] = {
            "map": self._map, "unmap": self._unmap, "load": self._load, "launch": self._launch,
        }  # fmt: skip

    def serve(self, head: dict[str, Any], body: bytes) -> None:
        self._does[head["do"]](head, body)

    def _map(self, head: dict[str, Any], body: bytes) -> None:
        import torch

        with open(head["path"], "r+b") as file:
            self._memory.append(torch.frombuffer(mmap.mmap(file.fileno(), 0), dtype=torch.uint8))

    def _unmap(self, head: dict[str, Any], body: bytes) -> None:
        self._memory[head["memory"]] = None

    def _load(self, head: dict[str, Any], body: bytes) -> None:
        self._kernels[head["symbol"]] = load_source(body.decode(), head["symbol"], self._folder)

    def _launch(self, head: dict[str, Any], body: bytes) -> None:
        import torch

        module = self._kernels[head["symbol"]]
        tensors = []
        for (number, offset), name in zip(head["places"], module.DTYPES.values(), strict=True):
            dtype, memory = getattr(torch, name), self._memory[number]
            size = (memory.numel() - offset) // dtype.itemsize * dtype.itemsize
            tensors.append(memory[offset : offset + size].view(dtype))
        module.launch(*tensors, *head["dims"])


def _serve() -> None:
    import torch

    _mend()
    answers = os.dup(1)
    os.dup2(2, 1)  # what a library prints must not land among the answers
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="tilewright-triton-") as folder:
        server = _Server(Path(folder))
        while message := received(lambda count: os.read(0, count)):
            told = {}
            try:
                server.serve(*message)
            except Exception as error:  # noqa: BLE001  every fault of a kernel is the answer
                told = {"error": f"{type(error).__name__}: {error}"}
            send(answers, told, b"")


if __name__ == "__main__":
    _serve()
