"""Printed kernels run by Triton's own interpreter: `InterpretedKernels`, a device (`ir/device.py`), and its process.

Triton decides when it is imported whether it interprets, and then for all kernels; so it does in a process of its own,
`python -m tilewright.backends.triton.interpreter`. Memory is shared with it, so that a launch sends places alone. Right
in f32 and f16; its dot of bf16 is not.
"""

from __future__ import annotations

import importlib.util
import mmap
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import numpy as np

from tilewright.backends.frames import received, send
from tilewright.backends.module_process import start_module
from tilewright.errors import ToolchainError
from tilewright.ir.grid_abi import Grid

Array = np.ndarray[Any, np.dtype[Any]]
_ALIGNMENT: Final = 64
_ROOM: Final = 44
"""Bits of an address that count bytes of one piece of memory; those above them are the piece's number."""


class InterpretedKernels:
    """A device whose kernels are printed sources, run in a process of its own; use it in a `with`.

    Raises ToolchainError where the interpreter fails.
    """

    def __enter__(self) -> InterpretedKernels:
        self._process = start_module(
            "tilewright.backends.triton.interpreter", environment={**os.environ, "TRITON_INTERPRET": "1"}
        )
        self._files: list[int] = []
        self._memory: list[Array | None] = []
        self._functions: dict[str, int] = {}
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

    def alloc(self, size: int) -> int:
        """Memory of `size` bytes and a vector's more, zeros: its address."""
        room = max(size, 1) + _ALIGNMENT
        file = os.memfd_create("tilewright-interpreted", os.MFD_CLOEXEC)
        os.ftruncate(file, room)
        self._files.append(file)
        self._memory.append(np.frombuffer(mmap.mmap(file, room), np.uint8))
        self._ask({"do": "map", "path": f"/proc/{os.getpid()}/fd/{file}"})
        return (len(self._files) - 1) << _ROOM

    def free(self, address: int) -> None:
        """Gives memory back."""
        number = address >> _ROOM
        self._ask({"do": "unmap", "memory": number})
        self._memory[number] = None
        os.ftruncate(self._files[number], 0)

    def write(self, address: int, data: memoryview) -> None:
        """Bytes of this process to the device."""
        self._bytes(address, data.nbytes)[:] = np.frombuffer(data, np.uint8)

    def read(self, address: int, into: memoryview) -> None:
        """Bytes of the device to this process."""
        into[:] = self._bytes(address, into.nbytes).data

    def copy(self, source: int, destination: int, size: int) -> None:
        """Bytes from one place of the device to another."""
        self._bytes(destination, size)[:] = self._bytes(source, size)

    def load(self, image: bytes, symbol: str) -> int:
        """A printed source: what `launch` calls it by. Raises ToolchainError for products of bf16."""
        source = image.decode()
        if "tl.dot(" in source and "bfloat16" in source:
            raise ToolchainError("Triton's interpreter multiplies no bf16", step="run the kernel in f32 or f16")
        if source not in self._functions:
            name = f"{symbol}_{len(self._functions)}"
            self._ask({"do": "load", "name": name, "symbol": symbol}, image)
            self._functions[source] = len(self._functions)
        return self._functions[source]

    def launch(self, function: int, grid: Grid, programs: int, buffers: Sequence[int], dims: Sequence[int]) -> None:
        """Runs a kernel's whole grid."""
        head = {"do": "launch", "function": function, "programs": programs, "dims": [int(d) for d in dims]}
        self._ask(head | {"places": [(address >> _ROOM, address % (1 << _ROOM)) for address in buffers]})

    def sync(self) -> None:
        """Every launch has ended when it returns."""

    def clock(self) -> int:
        """This process's nanoseconds."""
        return time.perf_counter_ns()

    def _bytes(self, address: int, size: int) -> Array:
        memory, start = self._memory[address >> _ROOM], address % (1 << _ROOM)
        assert memory is not None  # freed memory is nobody's
        return memory[start : start + size]

    def _ask(self, head: Mapping[str, Any], body: bytes = b"") -> None:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        send(stdin.fileno(), dict(head), body)
        answer = received(stdout.read)
        if answer is None:
            raise ToolchainError("Triton's interpreter has ended", step="run the kernel again and read its stderr")
        if answer[0]:
            raise ToolchainError(
                f"Triton's interpreter fails in kernel {answer[0]['kernel']}: {answer[0]['error']}",
                step="read the kernel's source",
            )


def load_source(source: str, name: str, folder: Path) -> Any:
    """The module of a printed source: a file of its own, because Triton reads a function's text from its file."""
    path = folder / f"{name}.py"
    path.write_text(source, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(f"tilewright_printed_{name}", path)
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
    """The process's side: mapped memory and kernels, by number."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._memory: list[Any] = []
        self._kernels: list[tuple[str, Any]] = []
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
        self._kernels.append((head["symbol"], load_source(body.decode(), head["name"], self._folder)))

    def _launch(self, head: dict[str, Any], body: bytes) -> None:
        import torch

        symbol, module = self._kernels[head["function"]]
        tensors = []
        for (number, offset), name in zip(head["places"], module.DTYPES.values(), strict=True):
            dtype, memory = getattr(torch, name), self._memory[number]
            size = (memory.numel() - offset) // dtype.itemsize * dtype.itemsize
            tensors.append(memory[offset : offset + size].view(dtype))
        getattr(module, symbol)[(head["programs"],)](*tensors, *head["dims"])

    def named(self, head: Mapping[str, Any]) -> str:
        """The kernel that a message is about, for a fault's text; empty where it is about none."""
        number = head.get("function")
        return str(head.get("symbol", "")) if number is None else self._kernels[number][0]


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
                told = {"kernel": server.named(message[0]), "error": f"{type(error).__name__}: {error}"}
            send(answers, told, b"")


if __name__ == "__main__":
    _serve()
