"""MLIR text in, relocatable object out: the one module that imports torch_mlir.

MLIR's own parser, verifier and conversions take the text to LLVM IR; llvmlite's LLVM optimises that and emits the
object. MLIR's ExecutionEngine could emit one, too, but only for the machine it runs on, and with two wrappers and a
second inlined copy beside every function. A target machine of our own makes the object a function of (text, target)
alone: the processor, its features, relocations and code model are all named here, nothing is asked of the host, and
no name of a file, process or time reaches the object.

The object is position-independent code of the small model without unwind tables (kernels never unwind).
Vectorisers are off: kernels say what is a vector, and a tail loop stays the scalar loop that was written.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tilewright.backends.host.float_literals import portable_floats
from tilewright.errors import MissingDependencyError, Problem, ToolchainError

# bf16 conversions become integer arithmetic: round to nearest even with denormals kept, the same bits on every class
# (the native instruction flushes denormals), and no call into a compiler's support library.
_PIPELINE = (
    "builtin.module(convert-scf-to-cf,convert-vector-to-llvm,arith-expand{include-bf16=true},convert-to-llvm,"
    "reconcile-unrealized-casts)"
)
_QUOTED_LINES = 6

REPORT_STEP = "this is a fault of Tilewright's code generator, not of the model: report the kernel and the lines above"
"""The next step of every ToolchainError about a kernel's text."""


@dataclass(frozen=True, slots=True)
class CpuTarget:
    """A class of CPU to generate code for.

    name: the class's name. cpu: LLVM's name for the processor. features: every LLVM feature that code for this class
    may use beyond the architecture's baseline, so also what a machine must have to run it. triple: LLVM's.
    """

    name: str
    cpu: str
    features: tuple[str, ...]
    triple: str = "x86_64-unknown-linux-gnu"


_X86_V3 = (
    *("cx16", "sahf", "popcnt", "crc32", "sse3", "ssse3", "sse4.1", "sse4.2"),
    *("avx", "avx2", "bmi", "bmi2", "f16c", "fma", "lzcnt", "movbe", "xsave"),
)
_X86_V4 = (*_X86_V3, "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl")

TARGETS = {
    target.name: target
    for target in (
        CpuTarget("generic", "x86-64", ()),
        CpuTarget("avx2", "x86-64-v3", _X86_V3),
        CpuTarget("avx512", "x86-64-v4", _X86_V4),
        CpuTarget("avx512-bf16", "x86-64-v4", (*_X86_V4, "avx512bf16", "avx512vnni")),
        CpuTarget(
            "avx512-amx", "x86-64-v4", (*_X86_V4, "avx512bf16", "avx512vnni", "amx-tile", "amx-bf16", "amx-int8")
        ),
        CpuTarget("aarch64", "generic", ("neon",), "aarch64-unknown-linux-gnu"),
    )
}
"""The CPU classes by name, each architecture's from least to most."""


def compile_object(text: str, target: CpuTarget) -> bytes:
    """Compile MLIR text (llvm, func, scf, cf, arith, math, vector, index dialects) to a relocatable ELF object.

    Same text and target, same bytes, in any process on any host. Every function defined in the text is exported
    unless it is an `llvm.func internal`. Raises ToolchainError naming the first function when the text does not parse,
    verify or lower, and MissingDependencyError when torch_mlir is not installed. A fault inside LLVM's code generator
    ends the process: `tilewright.backends.host.workers` turns that into a ToolchainError, too.
    """
    module, machine = _optimised(text, target)
    return bytes(machine.emit_object(module))


def compile_assembly(text: str, target: CpuTarget) -> str:
    """The assembly of the object that `compile_object` emits for the same arguments."""
    module, machine = _optimised(text, target)
    return str(machine.emit_assembly(module))


def load_toolchain() -> tuple[Any, Any, Callable[[Any], str]]:
    """MLIR's `ir` module, its PassManager, and its translation to LLVM IR; the first call in a process takes 0.5 s."""
    try:
        from torch_mlir import ir
        from torch_mlir.dialects.llvm import translate_module_to_llvmir
        from torch_mlir.passmanager import PassManager
    except ImportError as error:
        raise MissingDependencyError(
            f"compiling for the CPU needs MLIR's Python bindings ({error})", step="pip install torch-mlir"
        ) from error
    return ir, PassManager, translate_module_to_llvmir


def kernel_name(text: str) -> str:
    """The first function that the text defines; what errors call the text by."""
    found = re.search(r"\bfunc(?!.*\bprivate\b)[^@\n]*@([\w$.]+)\([^\n]*\{\s*$", text, re.MULTILINE)
    return found[1] if found else "<unnamed>"


def _optimised(text: str, target: CpuTarget) -> tuple[Any, Any]:
    """LLVM's module after its optimiser, and the target machine that emits it."""
    import llvmlite.binding as llvm

    ir_text = _to_llvm_ir(text)
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    machine = llvm.Target.from_triple(target.triple).create_target_machine(
        cpu=target.cpu,
        features=",".join(f"+{name}" for name in target.features),
        opt=3,
        reloc="pic",
        codemodel="small",
    )
    try:
        # A context of its own: types are renamed when names clash within one, and would then depend on history.
        module = llvm.parse_assembly(ir_text, llvm.create_context())
        module.triple = target.triple
        module.data_layout = str(machine.target_data)
        module.verify()
    except RuntimeError as error:
        raise _failure(text, f"LLVM rejects what MLIR emitted: {error}") from error
    # Kernels come with their loops tiled, unrolled and vectorised. What level 3 does beyond 1 took an eighth of LLVM's
    # time, and changed the speed of no kernel of a sentence encoder or a ResNet-50 by more than its spread.
    options = llvm.create_pipeline_tuning_options(speed_level=1)
    options.loop_vectorization = False
    options.slp_vectorization = False
    builder = llvm.create_pass_builder(machine, options)
    builder.getModulePassManager().run(module, builder)
    return module, machine


def _to_llvm_ir(text: str) -> str:
    ir, pass_manager, translate = load_toolchain()
    # A context each: compilations on several threads share nothing, and none leaves anything behind.
    with ir.Context():
        try:
            module = ir.Module.parse(text)
            pass_manager.parse(_PIPELINE).run(module.operation)
        except ir.MLIRError as error:
            raise _failure(text, str(error)) from error
        left = {"builtin.module"}

        def visit(operation: Any) -> Any:
            name = operation.operation.name
            if name == "llvm.func":
                operation.operation.attributes["no_unwind"] = ir.UnitAttr.get()
            elif not name.startswith("llvm."):
                left.add(name)
            return ir.WalkResult.ADVANCE

        module.operation.walk(visit)
        left.remove("builtin.module")
        # Translating what is not in the llvm dialect ends in a null pointer, not in an exception.
        if left:
            raise _failure(text, f"these ops have no lowering to LLVM: {', '.join(sorted(left))}")
        return portable_floats(translate(module.operation))


def _failure(text: str, diagnostic: str) -> ToolchainError:
    """The diagnostic's first lines, with the line of the text that it points at."""
    lines = [line.strip() for line in diagnostic.splitlines() if line.strip()][:_QUOTED_LINES]
    place = re.search(r'"-":(\d+):\d+', diagnostic)
    if place:
        source = text.splitlines()
        number = int(place[1])
        if 0 < number <= len(source):
            lines.append(f"line {number}: {source[number - 1].strip()}")
    return ToolchainError(Problem("\n    ".join(lines), op=f"kernel @{kernel_name(text)}"), step=REPORT_STEP)
