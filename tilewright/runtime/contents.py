"""sha256 of tensors' bytes, on threads of its own: what takes a second a gigabyte runs beside what waits for Python."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from tilewright.runtime.room import yielding
from tilewright.runtime.tensors import as_buffer, is_torch


class Contents:
    """Digests of tensors, each begun when it is first asked for and remembered until `forget`.

    threads: how many tensors are hashed, and copied where they are not dense, at a time. A torch tensor is known by
    where it lies in memory, and by torch's count of the writes to it: its digest is taken again after a write.
    """

    def __init__(self, threads: int = 1) -> None:
        self._threads = threads
        self._pool: ThreadPoolExecutor | None = None
        # with the tensor, so that its memory is not given to another one
        self._known: dict[Hashable, tuple[Any, Future[bytes]]] = {}

    def begin(self, tensors: Iterable[Any]) -> None:
        """Starts on torch tensors that will be asked for; of others nothing could be remembered."""
        for tensor in tensors:
            if _place(tensor) is not None:
                self.digest(tensor)

    def digest(self, tensor: Any) -> Future[bytes]:
        """sha256 of the bytes as `as_buffer` gives them."""
        if self._pool is None:
            # hashlib lets go of the interpreter lock for large buffers
            self._pool = ThreadPoolExecutor(self._threads, "tilewright-hash", yielding)
        place = _place(tensor)
        if place is None:
            return self._pool.submit(_digest, tensor)
        if place not in self._known:
            # another name for the same memory: the caller's tensor may be given other memory
            held = tensor.detach()
            self._known[place] = held, self._pool.submit(_digest, held)
        return self._known[place][1]

    def forget(self) -> None:
        """Lets go of the tensors, of what is not begun, and of the threads."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
        self._pool = None
        self._known.clear()


def _digest(tensor: Any) -> bytes:
    return hashlib.sha256(as_buffer(tensor).bytes()).digest()


def _place(tensor: Any) -> Hashable | None:
    """What is equal for torch tensors of the same bytes; None for what does not tell of its writes."""
    if not is_torch(tensor) or type(tensor).__name__ not in ("Tensor", "Parameter", "Buffer"):
        return None
    if str(tensor.layout) != "torch.strided" or tensor.device.type != "cpu" or tensor.is_inference():
        return None
    memory = (tensor.data_ptr(), str(tensor.dtype), tuple(tensor.shape), tuple(tensor.stride()))
    return *memory, tensor.is_neg(), tensor.is_conj(), tensor._version
