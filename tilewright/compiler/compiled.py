"""What compile() and load() return: a callable with its report, its IR, its memory and its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from tilewright.compiler.checking import FirstCall
from tilewright.compiler.code import Code
from tilewright.compiler.graph_breaks import settle, untraced
from tilewright.compiler.report import Report
from tilewright.errors import ArtifactAccessError, OptionError, TargetError
from tilewright.option_names import known_options
from tilewright.runtime.executor import Executable, Profile
from tilewright.runtime.facts import Account
from tilewright.runtime.memory import Footprint
from tilewright.runtime.states import StateStore

Level = Literal["graph", "tile", "target"]


@dataclass
class Compiled:
    """A compiled model. Call it like the model; any number of threads may call at once. No call compiles.

    loaded: what runs it; None where it was compiled for a device that this process has no executor for. Its report, IR
    and sources are there all the same, and what needs a run raises TargetError.
    """

    code: Code
    loaded: Executable | None
    facts: Account
    first_call: FirstCall | None = None
    _profile: Profile | None = None
    _checked: str | None = None

    def __post_init__(self) -> None:
        settle()

    def __repr__(self) -> str:
        program = self.code.program
        dims = ", ".join(map(str, program.dims)) or "no dims"
        return f"<Compiled {self.facts.model or 'program'} on {program.target}, {dims}>"

    @property
    def executable(self) -> Executable:
        """What runs the program."""
        if self.loaded is None:
            target = self.code.program.target
            raise TargetError(
                f"the kernels were compiled for {target}, and this process has no executor for that device",
                step="read .sources and .report, or compile with target='cpu' to run",
            )
        return self.loaded

    def __reduce_ex__(self, protocol: Any) -> Any:
        """A program is machine code in this process's memory: pickle and copy.deepcopy cannot carry it elsewhere."""
        raise ArtifactAccessError(
            "a compiled program cannot be pickled or copied",
            step="compiled.save(path), then tw.load(path) where it runs",
        )

    @untraced
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the program; raises coded errors for arguments outside what was compiled."""
        if self.first_call is not None:
            check, self.first_call = self.first_call, None
            output, self._checked = check(self, args, kwargs)
            return output
        return self.executable(*args, **kwargs)

    @property
    def report(self) -> Report:
        """What ran where and why, what moves, and what it costs; `.at(batch=8)` for numbers."""
        facts = self.facts if self._checked is None else replace(self.facts, checked=self._checked)
        return Report(self.code, facts, self._profile)

    def profile(self, *args: Any, **kwargs: Any) -> Report:
        """Runs once with a clock around every step; the report, at this call's sizes, then has a measured column."""
        _, self._profile = self.executable.profile(*args, **kwargs)
        return self.report

    @known_options()
    def ir(self, level: Level = "graph", *, after: str | None = None) -> str:
        """The program's text at a level, or the graph as it was after a pass of the pipeline."""
        if after is not None:
            from tilewright.compiler.replay import text_after

            return text_after(self.code, self.facts, after)
        if level == "target":
            return "\n".join(f"// {name}\n{source}" for name, source in sorted(self.sources.items()))
        if level not in self.code.texts:
            raise OptionError(f"no IR level is called {level!r}", step="use 'graph', 'tile' or 'target'")
        return self.code.texts[level]

    @property
    def sources(self) -> Mapping[str, str]:
        """The generated source of each kernel by its name."""
        return self.code.sources

    def memory(self, **dims: int) -> Footprint:
        """What one call needs at these sizes: weights, slots and results in bytes."""
        return self.executable.footprint(dims)

    @known_options()
    def update_weights(self, state_dict: Mapping[str, Any]) -> None:
        """Takes new values for all weights; WeightsError lists everything that does not fit.

        state_dict: the model's own, whole: weights that the model has and the program does not read are allowed, names
        that the model does not have are not. Buffers that no state dict holds keep their values. Calls that are running
        finish with the old values.
        """
        self.executable.update_weights(state_dict)

    @property
    def state(self) -> StateStore:
        """The model's mutated buffers by name."""
        return self.executable.state

    def reset(self) -> None:
        """Every state as it was before the first call."""
        self.executable.reset()

    @known_options()
    def save(self, path: str | Path) -> None:
        """Writes one relocatable artifact: IR, step table, packed weights and kernels."""
        from tilewright.compiler.artifacts import save

        save(self, path)
