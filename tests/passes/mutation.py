"""A mutation: one named predicate of a pass, what replaces it, and a module that needs it."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from xdsl.dialects.builtin import ModuleOp
from xdsl.ir import SSAValue

from tests.passes.graphs import Graph

Build = Callable[[Graph], SSAValue]


def always(*args: Any, **stated: Any) -> bool:
    return True


@dataclass(frozen=True)
class Mutation:
    """One predicate, what replaces it, and a module that needs it."""

    place: str
    build: Build
    passes: str
    replacement: Callable[..., Any] = always
    dtype: str = "f64"
    stated: dict[str, Any] = field(default_factory=dict)

    def module(self) -> ModuleOp:
        g = Graph("b: 1..4", "t: 2..7", dtype=self.dtype)
        g.sized("b", "t")
        return g.done(self.build(g))

    @property
    def name(self) -> str:
        return self.place.replace("tilewright.passes.", "")


def x_of(g: Graph, *dims: Any) -> SSAValue:
    return g.input("x", dims or ["b", 6])


def mutation(
    place: str, build: Build, passes: str, replacement: Callable[..., Any] = always, **stated: Any
) -> Mutation:
    dtype = stated.pop("dtype", "f64")
    return Mutation(f"tilewright.passes.{place}", build, passes, replacement, dtype, stated)


def mutate(monkeypatch: pytest.MonkeyPatch, mutation: Mutation) -> None:
    module, _, attribute = mutation.place.rpartition(".")
    try:
        owner: Any = importlib.import_module(module)
    except ModuleNotFoundError:
        outer, _, name = module.rpartition(".")
        owner = getattr(importlib.import_module(outer), name)
    assert callable(getattr(owner, attribute)), "the predicate has another name now"
    monkeypatch.setattr(owner, attribute, mutation.replacement)
