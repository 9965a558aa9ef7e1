"""What is compiled for: a backend, one of its machines, and the pipeline of passes that runs for them."""

from __future__ import annotations

from dataclasses import dataclass

from tilewright.compiler.levels import stage_of
from tilewright.compiler.options import Options
from tilewright.compiler.pipelines import pipeline_of
from tilewright.errors import OptionError
from tilewright.ir.backend import Backend, resolve_target
from tilewright.ir.compile_options import CompileOptions
from tilewright.ir.machine import Machine
from tilewright.ir.passing import Pipeline


@dataclass(frozen=True)
class Target:
    """A resolved target: backend, machine, and the pipeline that runs for it."""

    backend: Backend
    machine: Machine
    pipeline: Pipeline

    @staticmethod
    def of(options: Options) -> Target:
        backend, machine = resolve_target(options.target)
        stage_of(backend)
        pipeline = pipeline_of(options, backend)
        if options.determinism in ("batch", "exact") and not backend.device.in_process:
            raise OptionError(
                f"determinism={options.determinism!r} is not promised by {backend.name}: its dots and sums add in an "
                "order of their own, which depends on the tile",
                step="write determinism='run'",
            )
        return Target(backend, machine, pipeline)

    def order(self, options: Options) -> str:
        """The determinism in force: unless asked for, batch in this process and run on other devices."""
        return options.determinism or ("batch" if self.backend.device.in_process else "run")

    @property
    def runs_here(self) -> bool:
        """Whether this process runs what is compiled for it."""
        return self.backend.device.why_not_here() is None

    def told(self, options: Options) -> CompileOptions:
        """What passes are told of the options."""
        return CompileOptions(options.precision, self.order(options), options.objective)

    @property
    def name(self) -> str:
        return f"{self.backend.name}:{self.machine.name}"
