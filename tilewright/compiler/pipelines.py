"""Which passes run, decided in one place: the default or the user's own, the precision, and what the backend adds.

Compiling a model, a kernel in Python, an artifact's IR again, and `tilewright opt -p default` all ask here. The passes
themselves, in the order they run, are on the page `passes/pipeline.py`.
"""

from __future__ import annotations

from typing import Final

from tilewright.compiler.options import Options
from tilewright.errors import BackendManifestError, OptionError, ParseError, PassOptionError
from tilewright.ir.backend import Backend
from tilewright.ir.passing import Pass, Pipeline
from tilewright.passes.approximate_attention import ApproximateAttention
from tilewright.passes.pipeline import default_pipeline, materialising_pipeline, parse_pipeline
from tilewright.passes.plan_memory import PlanMemory
from tilewright.passes.set_precision import SetPrecision

_LOWERING: Final = "lower-to-tile"
_PLANNING: Final = PlanMemory.name


def whole_pipeline(
    backend: Backend, passes: Pipeline | str | None = None, *, precision: str = "model", materialise: bool = False
) -> Pipeline:
    """From a captured model to planned launches, for a backend: the default pipeline or `passes`, the precision where
    it is not the model's, and last what the backend adds.

    passes may name what is added here already, as the pipeline does that a report shows. materialise: the pipeline that
    makes every op a kernel. Raises OptionError for two statements of one thing, PassOrderError for passes that come
    before what they require, BackendManifestError for a `legalize` that is no pipeline.
    """
    if passes is not None and materialise:
        raise OptionError("passes and materialise both name a pipeline", step="leave one of them out")
    if isinstance(passes, Pipeline):
        chosen = passes
    elif passes is not None:
        chosen = parse_pipeline(passes)
    else:
        chosen = materialising_pipeline() if materialise else default_pipeline()
    found = _legal(_precise(chosen, precision), backend)
    found.check_order(_LOWERING, _PLANNING)
    return found


def pipeline_of(options: Options, backend: Backend) -> Pipeline:
    """The pipeline that compile() runs for these options."""
    found = whole_pipeline(backend, options.passes, precision=options.precision, materialise=options.materialise)
    approximate = options.attention
    if approximate is None:
        return found
    stated = tuple(bound for heads in approximate.bounds.norms for bound in heads)
    wanted = ApproximateAttention(float(approximate.eps), stated, approximate.crossover)
    # after all that finds attention, where the bounds were taken; a pipeline from a report has it
    return found if wanted in found.passes else found.after("recognize", wanted)


def kernel_pipeline(backend: Backend) -> Pipeline:
    """For kernels that nobody lowers, because they were written: what follows lowering in the default pipeline."""
    passes = default_pipeline().passes
    lowered = next(i for i, p in enumerate(passes) if p.name == _LOWERING)
    return _legal(Pipeline(passes[lowered + 1 :]), backend)


def planning_pipeline(backend: Backend) -> Pipeline:
    """For launches that were planned before, perhaps for another machine of the backend: where results live is decided
    anew, and what the backend adds runs again.
    """
    return _legal(Pipeline(tuple(p for p in default_pipeline().passes if p.name == _PLANNING)), backend)


def legalizing(backend: Backend) -> tuple[Pass, ...]:
    """The passes a backend adds. BackendManifestError names the field where its text is no pipeline."""
    try:
        return parse_pipeline(backend.legalize).passes
    except (ParseError, PassOptionError) as fault:
        raise BackendManifestError(
            [f"backend {backend.name}: legalize: {problem.text}" for problem in fault.problems],
            step="correct the manifest's field, or register the pass as an entry point of tilewright.passes",
        ) from fault


def _precise(pipeline: Pipeline, precision: str) -> Pipeline:
    stated = [p for p in pipeline.passes if isinstance(p, SetPrecision)]
    if precision == "model" or SetPrecision(precision) in stated:
        return pipeline
    if stated:
        raise OptionError(
            f"precision={precision!r}, and the pipeline has {', '.join(map(str, stated))}",
            step="leave set-precision out of passes",
        )
    # after recognize, which knows models by the casts they are written with; before weights are laid out
    return pipeline.before("hoist-weights", SetPrecision(precision))


def _legal(pipeline: Pipeline, backend: Backend) -> Pipeline:
    added = legalizing(backend)
    # a pipeline's text may come from a report, where it is whole
    if not added or pipeline.passes[-len(added) :] == added:
        return pipeline
    return Pipeline((*pipeline.passes, *added))
