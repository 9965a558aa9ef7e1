"""What is compiled for: a backend, one of its machines, and the pipeline of passes that runs for them."""

from __future__ import annotations

from dataclasses import dataclass

from tilewright.compiler.options import Options
from tilewright.errors import OptionError
from tilewright.ir.backend import Backend, resolve_target
from tilewright.ir.choices import CompileOptions
from tilewright.ir.machine import Machine
from tilewright.ir.passing import Pipeline
from tilewright.passes.pipeline import PASSES, default_pipeline, materialising_pipeline
from tilewright.passes.set_precision import SetPrecision


@dataclass(frozen=True)
class Target:
    """A resolved target: backend, machine, and the pipeline that runs for it."""

    backend: Backend
    machine: Machine
    pipeline: Pipeline

    @staticmethod
    def of(options: Options) -> Target:
        backend, machine = resolve_target(options.target)
        pipeline = pipeline_of(options)
        pipeline.check_order("lower-to-tile", "plan-memory")
        if options.determinism in ("batch", "exact") and backend.device != "cpu":
            raise OptionError(
                f"determinism={options.determinism!r} is not promised by {backend.name}: its dots and sums add in an "
                "order of their own, which depends on the tile",
                step="write determinism='run'",
            )
        return Target(backend, machine, pipeline)

    def order(self, options: Options) -> str:
        """The determinism in force: unless asked for, batch in this process and run on other devices."""
        return options.determinism or ("batch" if self.backend.device == "cpu" else "run")

    def told(self, options: Options) -> CompileOptions:
        """What passes are told of the options."""
        return CompileOptions(options.precision, self.order(options), options.objective)

    @property
    def name(self) -> str:
        return f"{self.backend.name}:{self.machine.name}"


def pipeline_of(options: Options) -> Pipeline:
    """The pipeline asked for, or the default one, with the precision asked for in it."""
    if options.passes is not None and options.materialise:
        raise OptionError("passes and materialise both name a pipeline", step="leave one of them out")
    if isinstance(options.passes, Pipeline):
        pipeline = options.passes
    elif isinstance(options.passes, str):
        pipeline = Pipeline.parse(options.passes, PASSES)
    else:
        pipeline = materialising_pipeline() if options.materialise else default_pipeline()
    stated = [p for p in pipeline.passes if isinstance(p, SetPrecision)]
    if options.precision == "model" or SetPrecision(options.precision) in stated:
        return pipeline
    if stated:
        raise OptionError(
            f"precision={options.precision!r}, and the pipeline has {', '.join(map(str, stated))}",
            step="leave set-precision out of passes",
        )
    # after recognize, which knows models by the casts they are written with; before weights are laid out
    return pipeline.before("hoist-weights", SetPrecision(options.precision))
