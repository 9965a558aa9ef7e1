"""What stands around a printed kernel so that its file can be read, kept and run alone: a head, `launch` and `main`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from tilewright.backends.source_names import bare
from tilewright.backends.triton.indices import IndexText
from tilewright.ir.dims import Expr, product
from tilewright.ir.dtypes import DType
from tilewright.ir.tile import compute, lines, places
from tilewright.ir.tile.base import buffer
from tilewright.ir.tile.structure import KernelOp

TRIED = 33
"""The size that `main` gives to every dim: a multiple of no tile."""

_TORCH: Final[dict[str, str]] = {
    "f64": "float64", "f32": "float32", "f16": "float16", "bf16": "bfloat16",
    "i64": "int64", "i32": "int32", "i16": "int16", "i8": "int8", "u8": "uint8", "i1": "bool",
}  # fmt: skip
_WORKS: Final[dict[type, str]] = {
    compute.DotOp: "dot", compute.SortOp: "sort", compute.TopkOp: "top-k", compute.ScanOp: "scan",
    compute.TransposeOp: "transpose", compute.UnpackOp: "unpack", compute.PackOp: "pack", places.LookupOp: "gather",
    places.UpdateOp: "scatter", lines.SortLineOp: "sort", lines.TopkLineOp: "top-k",
}  # fmt: skip


class Standalone:
    """The parts of a kernel's file. names: of the kernel's parameters, buffers before dims."""

    def __init__(self, kernel: KernelOp, names: Sequence[str], dims: Mapping[str, str]) -> None:
        self.kernel, self.dims = kernel, dims
        self.buffers = list(zip(names, (buffer(v) for v in kernel.buffers), strict=False))
        self.sizes = list(names[len(self.buffers) :])
        self.text = IndexText(set(), host=True)

    def _expr(self, expr: Expr) -> str:
        return self.text.expr(expr, self.dims, dict.fromkeys(self.dims, (0, None)))

    def _shape(self, dims: Sequence[Expr]) -> str:
        return ", ".join(bare(self._expr(d)) for d in dims)

    def head(self) -> str:
        """What the kernel computes, where it comes from, its tensors and its grid."""
        kernel = self.kernel
        origin = " ".join(filter(None, [kernel.path, kernel.loc and f"({kernel.loc})"]))
        works = dict.fromkeys(filter(None, map(_work, kernel.walk())))
        said = [f"{kernel.sym_name.data}: {', '.join(works) or 'copy'}.", ""]
        if origin:
            said += [f"From {origin}.", ""]
        written = len(kernel.inputs)
        for number, (name, found) in enumerate(self.buffers):
            way = "in " if number < written else "out"
            said.append(f"    {way} {name:4} {found.dtype}[{self._shape(found.dims)}]")
        tiles = zip(kernel.extents.data, kernel.tiles.data, strict=True)
        grid = ", ".join(f"{bare(self._expr(n))} by {t}" for n, t in tiles)
        said += ["", f"One program a tile of ({grid}). Tensors are dense and row-major."]
        return '"""' + "\n".join(said) + '\n"""'

    def launch(self, warps: int, stages: int) -> str:
        """The function that runs the grid."""
        names = ", ".join([name for name, _ in self.buffers] + self.sizes)
        symbol = self.kernel.sym_name.data
        outputs = ", ".join(name for name, _ in self.buffers[len(self.kernel.inputs) :])
        return "\n".join([
            f"def launch({names}, num_warps={warps}, num_stages={stages}):",
            f'    """Runs the grid; {outputs} {"is" if "," not in outputs else "are"} written."""',
            f"    programs = {bare(self._expr(product(self.kernel.programs)))}",
            "    if programs > 0:",
            f"        {symbol}[(programs,)]({names}, num_warps=num_warps, num_stages=num_stages)",
        ])  # fmt: skip

    def main(self) -> str:
        """A run on random numbers; integers are zeros, because they may be places."""
        arguments = ", ".join(f"{d}={TRIED}" for d in self.sizes)
        said = [
            f"def main({arguments}):",
            '    """Runs on random inputs and prints what is written."""',
            "    import os",
            "",
            "    import torch",
            "",
            '    interpreted = os.environ.get("TRITON_INTERPRET") == "1"',
            '    device = "cpu" if interpreted else torch.accelerator.current_accelerator()',
        ]
        for number, (name, found) in enumerate(self.buffers):
            if number < len(self.kernel.inputs):
                made = f"torch.randn([{self._shape(found.dims)}]).to(device, torch.{_TORCH[found.dtype.name]})"
                if not found.dtype.is_float:
                    made = _filled("zeros", self._shape(found.dims), found.dtype)
            else:
                made = _filled("empty", self._shape(found.dims), found.dtype)
            said.append(f"    {name} = {made}")
        names = ", ".join([name for name, _ in self.buffers] + self.sizes)
        outputs = ", ".join(name for name, _ in self.buffers[len(self.kernel.inputs) :])
        said += [f"    launch({names})", f"    print({outputs})"]
        said += ["", "", 'if __name__ == "__main__":', "    main()"]
        return "\n".join(said)

    def dtypes(self) -> str:
        """The dtypes of the tensors, by torch's names."""
        listed = ", ".join(f'"{name}": "{_TORCH[found.dtype.name]}"' for name, found in self.buffers)
        return f"DTYPES = {{{listed}}}"


def _filled(how: str, shape: str, dtype: DType) -> str:
    return f"torch.{how}([{shape}], dtype=torch.{_TORCH[dtype.name]}, device=device)"


def _work(op: object) -> str | None:
    """What an op does, in a word or two; None for what moves and counts."""
    if isinstance(op, compute.MapOp):
        return op.fn.data if op.fn.data not in ("select", "and", "or", "not") else None
    if isinstance(op, (compute.ReduceOp, compute.AccumulateOp)):
        return f"row {op.fn.data}"
    return _WORKS.get(type(op))
