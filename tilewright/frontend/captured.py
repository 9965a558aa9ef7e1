"""What capture hands to the compiler: the graph, the model's tensors, and how a call looks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from xdsl.dialects.builtin import ModuleOp

from tilewright.ir.dims import Dim
from tilewright.ir.entry_attributes import Read, guards, reads, require
from tilewright.ir.guards import Guard
from tilewright.ir.signature import Signature

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Source:
    """Where the graph came from, for the report: the model's class and the library that captured it."""

    model: str
    captured_by: str
    operators: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Captured:
    """A captured model.

    module: a builtin.module with `graph.func @main` and what a call is held to and tells, as attributes: dims, guards,
    and dims that are read from arguments.
    weights: parameters and buffers by their state-dict name, as references to the model's own storage; tensors that
    share storage are one entry, and `aliases` maps their other names to it.
    transient: the names among `weights` that no state dict holds (non-persistent buffers, lifted constants).
    states: buffers that forward writes to, with their initial values. zeroed: states besides, which start as zeros.
    notes: what the user should know and would not see otherwise.
    externs: the functions behind `graph.extern`, by callee.
    proved: whether the graph was proved to be the model's at every size it is used for; nothing was merely tried out.
    """

    module: ModuleOp
    weights: Mapping[str, torch.Tensor]
    aliases: Mapping[str, str]
    transient: frozenset[str]
    states: Mapping[str, torch.Tensor]
    signature: Signature
    dims: tuple[Dim, ...]
    notes: tuple[str, ...]
    source: Source
    externs: Mapping[str, Callable[..., Any]]
    proved: bool = False
    zeroed: frozenset[str] = frozenset()

    @property
    def guards(self) -> tuple[Guard, ...]:
        """Relations between dims the graph relies on."""
        return guards(self.module)

    @property
    def reads(self) -> tuple[Read, ...]:
        """Dims whose value is an argument's only element."""
        return reads(self.module)


@dataclass(frozen=True)
class Proof:
    """What came of holding a graph against its model. guards: those that it relies on besides its own. notes: for the
    report. proved: as in `Captured`.
    """

    guards: tuple[Guard, ...] = ()
    notes: tuple[str, ...] = ()
    proved: bool = False

    def of(self, captured: Captured, module: ModuleOp) -> Captured:
        """The capture, with this known of it. module: its graph."""
        require(module, self.guards)
        return replace(captured, module=module, notes=(*captured.notes, *self.notes), proved=self.proved)


@dataclass(frozen=True)
class Unproved:
    """A capture that was not held against its model yet: right in all likelihood, and nobody's before `prove` says so.

    prove: asked once, with what gives the graph as it was captured; raises SpecialisationError and CaptureError. The
    model must be as it was when it was captured.
    """

    captured: Captured
    prove: Callable[[Callable[[], ModuleOp]], Proof]

    def proved(self) -> Captured:
        """The capture, held against its model."""
        module = self.captured.module
        return self.prove(lambda: module).of(self.captured, module)
