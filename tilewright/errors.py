"""Every failure a user can meet, one class each, with a stable code.

An error says what happened, where (the user's file and line), with which numbers, and one step to take next.
All problems of one kind travel in one error: `problems` is a list, printed as one block.
`tilewright explain CODE` prints a class's docstring.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, slots=True)
class Problem:
    """One fault: what is wrong, the op it concerns, and the user's source line ("model.py:12") where known."""

    text: str
    op: str | None = None
    where: str | None = None

    def __str__(self) -> str:
        head = f"{self.op}: {self.text}" if self.op else self.text
        return f"{head}  (at {self.where})" if self.where else head


class TilewrightError(Exception):
    """The base of every error Tilewright raises on purpose.

    problems: what is wrong, one entry a fault (a string is short for a Problem without a place).
    step: the one thing to do next, ready to paste where that is possible.
    """

    code: ClassVar[str] = "TW000"
    title: ClassVar[str] = "internal error"

    def __init__(self, problems: str | Problem | Sequence[str | Problem], *, step: str) -> None:
        listed: Sequence[str | Problem] = [problems] if isinstance(problems, (str, Problem)) else problems
        self.problems = [p if isinstance(p, Problem) else Problem(p) for p in listed]
        self.step = step
        super().__init__(self._render())

    def _render(self) -> str:
        if len(self.problems) == 1:
            body = f" {self.problems[0]}"
        else:
            body = f" {len(self.problems)} problems" + "".join(f"\n  - {p}" for p in self.problems)
        return f"{self.code} {self.title}:{body}\n  next: {self.step}"

    def __reduce__(self) -> tuple[object, ...]:
        # Errors cross process borders (compile workers); the default would call __init__ without `step`.
        return (_rebuild, (type(self), self.problems, self.step))


def _rebuild(cls: type[TilewrightError], problems: list[Problem], step: str) -> TilewrightError:
    return cls(problems, step=step)


# --- the caller's arguments -----------------------------------------------------------------------------------------


class ArgumentError(TilewrightError):
    """A call's arguments do not match the compiled signature: a missing, extra or misnamed argument."""

    code, title = "TW001", "arguments do not match the signature"


class DTypeError(TilewrightError):
    """A tensor has another dtype than the example it was compiled for, or an example than the model's weights."""

    code, title = "TW002", "wrong dtype"


class RankError(TilewrightError):
    """A tensor has another number of axes than the example it was compiled for."""

    code, title = "TW003", "wrong rank"


class DimRangeError(TilewrightError):
    """A declared dim lies outside its range; the next step is the dims line that would admit it."""

    code, title = "TW004", "dim out of its declared range"


class DimMismatchError(TilewrightError):
    """A call's sizes are not those compiled for: fixed axes, axes that share a Dim, sizes the model decides by."""

    code, title = "TW005", "dim does not match what was compiled"


class DimDeclarationError(TilewrightError):
    """The `dims` given to compile() do not fit the arguments, or a Dim's bounds make no sense."""

    code, title = "TW006", "dims declaration is wrong"


class DeviceError(TilewrightError):
    """A tensor lives on a device the compiled program does not read."""

    code, title = "TW007", "tensor is on another device"


class OptionError(TilewrightError):
    """An option of compile() or of the command line has a value that is not one of those it takes."""

    code, title = "TW008", "wrong option"


class ModelInputError(TilewrightError):
    """The thing handed over as a model is not one: a missing file, an unreadable directory, another type."""

    code, title = "TW009", "not a model"


# --- capture --------------------------------------------------------------------------------------------------------


class UnsupportedOpError(TilewrightError):
    """The model uses operators that the graph dialect has no op for; every one of them is listed."""

    code, title = "TW010", "unsupported operators"


class TrainingModeError(TilewrightError):
    """A module is in training mode and holds dropout or batch norm, whose training behaviour is not inference."""

    code, title = "TW011", "module is in training mode"


class HookError(TilewrightError):
    """The module carries hooks, which capture would silently drop."""

    code, title = "TW012", "module has hooks"


class CaptureError(TilewrightError):
    """torch.export could not capture the model; its own message is quoted."""

    code, title = "TW013", "capture failed"


class SpecialisationError(TilewrightError):
    """The model decides by a declared dim: captured for one size, a narrower range, or sizes no check can tell."""

    code, title = "TW014", "a declared dim was specialised"


class AutogradError(TilewrightError):
    """A compiled call received a tensor that requires grad while grad mode is on; compiled programs are inference."""

    code, title = "TW015", "autograd through a compiled call"


class AutogradWarning(UserWarning):
    """Under torch.compile: a graph that autograd records runs in eager. The text is AutogradError's, code included."""


class EagerWarning(UserWarning):
    """Under torch.compile with fallback="torch": a graph without kernels runs in eager. It ends in the error's text."""


class ExpectationError(TilewrightError):
    """A pattern count given in `expect` did not hold; the nearest near-miss and its reason are named."""

    code, title = "TW016", "expected pattern counts do not hold"


# --- IR, passes, backends -------------------------------------------------------------------------------------------


class IRError(TilewrightError):
    """A module breaks a rule of its dialect: a type that does not follow, an operand out of place."""

    code, title = "TW020", "malformed IR"


class ParseError(TilewrightError):
    """IR or pipeline text does not parse; the line and the expected token are named."""

    code, title = "TW021", "text does not parse"


class PassOptionError(TilewrightError):
    """A pipeline names a pass that does not exist or an option it does not take."""

    code, title = "TW022", "bad pass or pass option"


class PassOrderError(TilewrightError):
    """A pass was placed before something it requires."""

    code, title = "TW023", "pass order"


class PassError(TilewrightError):
    """A pass raised an exception, or made IR that breaks the rules of its dialect; the original error is the cause."""

    code, title = "TW036", "a pass is at fault"
    ours = False  # the pass is one of Tilewright's own


class NumericMismatchError(TilewrightError):
    """A check found different numbers: verify-each after a pass, or check="first" against the original model."""

    code, title = "TW024", "results differ"


class PoisonError(TilewrightError):
    """A kernel let a value from outside a view's extents reach a store or an index."""

    code, title = "TW025", "out-of-bounds value was used"


class StepError(TilewrightError):
    """A model that cannot be run token by token, with every op that stands in the way."""

    code, title = "TW037", "cannot generate step by step"


class KernelStoreError(TilewrightError):
    """A kernel writes an element twice, leaves one unwritten, or reads an output that it has not written itself."""

    code, title = "TW034", "a kernel's writes are unsound"


class KernelError(TilewrightError):
    """A kernel written with @tw.kernel is wrong: its signature, a static parameter, or a line that builds it."""

    code, title = "TW035", "user kernel is wrong"


class LoweringError(TilewrightError):
    """A graph op has no lowering to tiles for this machine; the op and the reason are named."""

    code, title = "TW026", "no lowering"


class MemoryPlanError(TilewrightError):
    """The independent checker found two live buffers that overlap, or a buffer outside its slot."""

    code, title = "TW027", "memory plan is unsound"


class InterpreterError(TilewrightError):
    """A reference run could not go on, or an op gave another shape or dtype than its type says; the op is named."""

    code, title = "TW029", "reference run failed"


class CapacityError(TilewrightError):
    """A program needs more memory than `memory_limit` or the machine has; the buffer table is printed."""

    code, title = "TW028", "does not fit in memory"


class TargetError(TilewrightError):
    """No registered backend has this machine, or it is not ready, or nothing here runs what is compiled for it."""

    code, title = "TW030", "target cannot be used"


class BackendManifestError(TilewrightError):
    """A backend's manifest does not validate; the field at fault is named."""

    code, title = "TW031", "backend manifest is invalid"


class MissingDependencyError(TilewrightError):
    """A library that this feature needs is not installed; the command that installs it is given."""

    code, title = "TW032", "a dependency is missing"


class ToolchainError(TilewrightError):
    """The code generator's own compiler rejected a kernel or crashed; its first lines are quoted."""

    code, title = "TW033", "toolchain failed"


# --- programs, cache, artifacts, weights ----------------------------------------------------------------------------


class WeightsError(TilewrightError):
    """A state dict misses weights, holds unknown ones, or has other shapes or dtypes than the program's."""

    code, title = "TW040", "weights do not fit"


class CacheError(TilewrightError):
    """The cache directory cannot be created, read or written."""

    code, title = "TW041", "cache is not usable"


class ArtifactError(TilewrightError):
    """A file is not a Tilewright artifact, or is truncated or altered: a hash does not match."""

    code, title = "TW042", "artifact is damaged"


class ArtifactAccessError(ArtifactError):
    """An artifact's file does not exist, is a folder or cannot be opened, or there is no place to write it to."""

    code, title = "TW046", "artifact cannot be read or written"


class ArtifactVersionError(TilewrightError):
    """An artifact was written by another format version than this one reads."""

    code, title = "TW043", "artifact version"


class CpuFeatureError(TilewrightError):
    """An artifact's native kernels need CPU features that this machine lacks, and it cannot be rebuilt here."""

    code, title = "TW044", "CPU lacks features"


class StateError(TilewrightError):
    """A named state does not exist or was given another shape or dtype."""

    code, title = "TW045", "state does not fit"


# --- text generation ------------------------------------------------------------------------------------------------


class PromptError(TilewrightError):
    """A prompt has no tokens, ids outside the vocabulary, or more tokens than the model was compiled for."""

    code, title = "TW050", "prompt cannot be continued"


class SamplerError(TilewrightError):
    """An option of tw.Sampler is outside its range, two of them exclude each other, or nothing is left to choose."""

    code, title = "TW051", "sampler is wrong"


class CacheFullError(TilewrightError):
    """The keys and values of a request do not fit into the cache, now or ever; the bytes and pages are named."""

    code, title = "TW052", "cache is full"


class StepProgramError(TilewrightError):
    """A step program or its cache layout breaks the protocol of tilewright/runtime/generation/step.py."""

    code, title = "TW053", "step program breaks its protocol"


class TextError(TilewrightError):
    """Text in or out needs a tokenizer or a chat template that is missing, or that refuses the messages."""

    code, title = "TW054", "text cannot be read or written"


class GrammarError(TilewrightError):
    """A grammar, regular expression or JSON schema is invalid, or admits no token after what was generated."""

    code, title = "TW055", "grammar cannot be followed"


class EngineError(TilewrightError):
    """A language model has one engine at a time, and its limits must leave room for at least one request."""

    code, title = "TW056", "engine cannot be used"


def all_errors() -> dict[str, type[TilewrightError]]:
    """Every concrete error class by its code, in code order."""
    found: dict[str, type[TilewrightError]] = {}
    pending: list[type[TilewrightError]] = list(TilewrightError.__subclasses__())
    while pending:
        cls = pending.pop()
        pending.extend(cls.__subclasses__())
        found[cls.code] = cls
    return dict(sorted(found.items()))
