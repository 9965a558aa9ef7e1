"""What is needed of a capture where its code exists already; it is kept, so that the model is not traced again."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from tilewright.compiler.store import Store
from tilewright.frontend.captured import Captured
from tilewright.frontend.identity import Identity, identify, tensors_of
from tilewright.frontend.library_operators import KNOWN_LIBRARIES
from tilewright.runtime.canonical import key_of


@dataclass(frozen=True)
class Taken:
    """factors: the capture's part of the code key. weights, states, externs, notes: as in `Captured`. model: its class.

    origin: what the report says of where it came from.
    """

    factors: Mapping[str, Any]
    weights: Mapping[str, Any]
    states: Mapping[str, Any]
    externs: Mapping[str, Callable[..., Any]]
    notes: tuple[str, ...]
    model: str
    origin: str = "made"

    @staticmethod
    def of(captured: Captured, text: str, origin: str = "made") -> Taken:
        """text: of the captured module."""
        factors = {
            "graph": hashlib.sha256(text.encode()).hexdigest(),
            "signature": key_of(captured.signature.to_json()),
            "guards": [str(g) for g in captured.guards],
            "reads": [[read.dim, read.argument] for read in captured.reads],
            "aliases": dict(sorted(captured.aliases.items())),
            "transient": sorted(captured.transient),
            "names": key_of(sorted({*captured.weights, *captured.states})),
            "zeroed": sorted(captured.zeroed),
            "dims": [[d.name, d.min, d.max, d.kind] for d in captured.dims],
        }
        return Taken(
            factors, captured.weights, captured.states, captured.externs, captured.notes, captured.source.model, origin
        )


@dataclass(frozen=True)
class Memory:
    """One model's captures in a store: asked before it is captured, told afterwards.

    taken: the capture that was made before, if it was. why: why it is made now, for the report. besides: plain data
    that is kept with it.
    """

    store: Store
    identity: Identity
    taken: Taken | None
    why: str
    besides: Mapping[str, Any] = field(default_factory=dict)

    @staticmethod
    def of(
        store: Store,
        model: Any,
        args: Any,
        kwargs: Any,
        dims: Any,
        fallback: str,
        made_into: Mapping[str, Any] | None = None,
    ) -> Memory:
        """made_into: all that decides, besides the capture, what is made of it before it is code: plain data."""
        if store.cache is None:
            return Memory(store, Identity(None), None, "nothing is kept")
        identity = identify(model, args, kwargs, dims, fallback)
        if identity.factors is None:
            return Memory(store, identity, None, identity.unproved)
        if made_into is not None:
            identity = replace(identity, factors={**identity.factors, "made into": made_into})
        kept, why = store.capture(identity.factors or {})
        if kept is None:
            return Memory(store, identity, None, why)
        return Memory(store, identity, _taken(kept, model), why, kept["besides"])

    def keep(self, captured: Captured, taken: Taken) -> None:
        """Remembers a capture, unless it says something that the identity does not decide: numbers that were tried out
        and not proved, tensors that are not the model's own, operators that others lower.
        """
        if self.identity.factors is None or self.taken is not None or not captured.proved or taken.externs:
            return
        foreign = {_library_name(name) for name in captured.source.operators} - self.identity.operators - {None}
        lifted = [name for name in captured.weights if name.startswith("constant.")]
        if foreign or lifted:
            return
        self.store.keep_capture(
            self.identity.factors,
            {
                "factors": dict(taken.factors), "weights": sorted(taken.weights), "states": sorted(taken.states),
                "notes": list(taken.notes), "model": taken.model, "besides": dict(self.besides),
            },
        )  # fmt: skip


def _library_name(operator: str) -> str | None:
    """An operator as its library names it, "mylib::swiglu"; None where this package alone lowers it."""
    library, _, rest = operator.partition(".")
    return None if library in KNOWN_LIBRARIES else f"{library}::{rest.partition('.')[0]}"


def _taken(kept: Mapping[str, Any], model: Any) -> Taken:
    tensors = tensors_of(model)
    return Taken(
        kept["factors"],
        {name: tensors[name] for name in kept["weights"]},
        {name: tensors[name].clone() for name in kept["states"]},
        {},
        tuple(kept["notes"]),
        kept["model"],
        "as before: neither the model nor the code that it runs has changed",
    )
