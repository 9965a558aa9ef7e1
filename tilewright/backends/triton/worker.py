"""A compile worker: `python -m tilewright.backends.triton.worker`, started by `workers`.

Reads requests on stdin and answers on stdout, one at a time, until stdin ends. In a process of its own because Triton
reads its settings from the environment, and because a fault in a vendor's assembler must not end the caller.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from tilewright.backends.frames import received, send
from tilewright.ir.grid_abi import ALIGNMENT

_QUOTED = 1200


def compile_kernel(head: dict[str, Any], source: str, folder: Path) -> Any:
    """A printed kernel compiled for one GPU, no device needed: all that Triton has made of it.

    Every tensor begins on a multiple of 16 bytes, as the grid ABI has it; without that no load would be a vector.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from tilewright.backends.triton.interpreter import load_source

    function = getattr(load_source(source, head["symbol"], folder), head["symbol"])
    signature: dict[str, str] = head["signature"]
    aligned = {(n,): [["tt.divisibility", ALIGNMENT]] for n, kind in enumerate(signature.values()) if kind[0] == "*"}
    return triton.compile(
        ASTSource(fn=function, signature=signature, constexprs={}, attrs=aligned),
        target=GPUTarget(head["backend"], head["arch"], head["threads"]),
        options={"num_warps": head["warps"], "num_stages": head["stages"]},
    )


def compile_source(head: dict[str, Any], source: str, folder: Path) -> tuple[dict[str, Any], bytes]:
    """What a launch must know, and the object."""
    made = compile_kernel(head, source, folder)
    kind = "cubin" if head["backend"] == "cuda" else "hsaco"
    facts = {"shared": made.metadata.shared, "threads": made.metadata.num_warps * head["threads"]}
    return facts, bytes(made.asm[kind])


def main() -> None:
    """Serves until stdin ends."""
    answers = os.dup(1)
    os.dup2(2, 1)  # what a library prints must not land among the answers
    with tempfile.TemporaryDirectory(prefix="tilewright-triton-") as folder:
        os.environ["TRITON_CACHE_DIR"] = folder
        while message := received(lambda count: os.read(0, count)):
            head, source = message
            try:
                facts, image = compile_source(head, source.decode(), Path(folder))
            except Exception as error:  # noqa: BLE001  every fault of a compilation is the answer
                facts, image = {"error": f"{type(error).__name__}: {error}"[:_QUOTED]}, b""
            send(answers, facts, image)


if __name__ == "__main__":
    main()
