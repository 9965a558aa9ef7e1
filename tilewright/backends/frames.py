"""Messages to worker processes and back: a JSON header and raw bytes, each with its length before it."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from typing import Any

_LENGTHS = struct.Struct("<QQ")


def send(descriptor: int, header: dict[str, Any], body: bytes) -> None:
    """Writes one message. Raises BrokenPipeError where nobody reads any more."""
    head = json.dumps(header).encode()
    rest = memoryview(_LENGTHS.pack(len(head), len(body)) + head + body)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def received(read: Callable[[int], bytes]) -> tuple[dict[str, Any], bytes] | None:
    """The next message from `read`, which returns up to that many bytes; None when the stream has ended."""
    lengths = _exactly(read, _LENGTHS.size)
    if lengths is None:
        return None
    head_length, body_length = _LENGTHS.unpack(lengths)
    head, body = _exactly(read, head_length), _exactly(read, body_length)
    if head is None or body is None:
        return None
    header: dict[str, Any] = json.loads(head)
    return header, body


def _exactly(read: Callable[[int], bytes], count: int) -> bytes | None:
    parts: list[bytes] = []
    while count:
        part = read(count)
        if not part:
            return None
        parts.append(part)
        count -= len(part)
    return b"".join(parts)
