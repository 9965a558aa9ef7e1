"""The factors of the code key: all that decides what passes and backend produce, by name."""

from __future__ import annotations

import hashlib
import inspect
import sys
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tilewright.compiler.options import Options
from tilewright.compiler.taken import Taken
from tilewright.compiler.target import Target
from tilewright.errors import PassOptionError
from tilewright.ir.backend import Backend
from tilewright.ir.passing import Pipeline
from tilewright.runtime.weights import content_key


@cache
def sources_hash() -> str:
    """The hash of this package's own code: a change to any pass, kernel or printer is another code key."""
    root = Path(__file__).resolve().parent.parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def plugins_of(pipeline: Pipeline, backend: Backend) -> dict[str, str]:
    """For each class that a pass from outside this package is made of, and for such a backend, the hash of all source
    beside it.

    All of its package (or, for a single module, its folder's modules that are loaded): it may call any of it.
    """
    found = {}
    parts: list[tuple[str, str, Any]] = [
        (f"pass {p.name}", "pass", kind) for p in pipeline.passes for kind in type(p).__mro__
    ]
    for what, kind, part in [*parts, (f"backend {backend.name}", "backend", backend.build)]:
        root = part.__module__.partition(".")[0]
        if root in ("tilewright", "builtins", "abc", "typing"):
            continue
        try:
            own = Path(inspect.getfile(part)).resolve()
        except (OSError, TypeError) as fault:
            raise PassOptionError(
                f"the source of {what} cannot be read, so nothing made with it can be cached: {fault}",
                step=f"define the {kind} in a file, or compile with cache=False",
            ) from fault
        found[f"{part.__module__}.{part.__qualname__}"] = _source_hash(own, root)
    return found


def _source_hash(own: Path, root: str) -> str:
    """The hash of a class's file, of its top-level package, and of loaded modules from the same folder."""
    files = {own}
    for name, module in list(sys.modules.items()):
        place = Path(getattr(module, "__file__", None) or ".")
        # some modules name a file that never was, relative to nothing ("_classes.py")
        if place.suffix == ".py" and place.is_absolute() and place.is_file():
            same = name.partition(".")[0] == root or place.resolve().parent == own.parent
            files |= {place.resolve()} if same else set()
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def code_factors(taken: Taken, target: Target, options: Options) -> dict[str, Any]:
    """Everything that decides the program and its objects: graph, dims, machine, pipeline, options, toolchain."""
    return {
        "kind": "code",
        **taken.factors,
        "machine": target.machine.key(),
        "backend": target.backend.name,
        "pipeline": str(target.pipeline),
        # passes that read values decide by them
        "values": content_key(taken.weights) if any(p.reads_weights for p in target.pipeline.passes) else None,
        "plugins": plugins_of(target.pipeline, target.backend),
        "options": {**target.told(options).to_dict(), "materialise": options.materialise},
        "toolchain": {**target.backend.toolchain(), "torch": version("torch"), "xdsl": version("xdsl")},
        "tilewright": sources_hash(),
    }
