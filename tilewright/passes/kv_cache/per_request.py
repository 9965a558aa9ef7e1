"""What a request keeps beside keys and values: a row of states that every token overwrites.

A recurrence (`graph.linear_attention`) keeps the state after a request's last token. A convolution along the tokens
keeps the request's last inputs, as many as its window reaches back: what its taps read lies in one line, the kept
inputs of all requests and behind them the step's tokens, and the arguments `taps_n` and `ends_n` say where. Rows of a
request that has read nothing hold zeros, which is what the model itself begins with.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from xdsl.ir import Operation, SSAValue

from tilewright.ir.dims import Expr, product
from tilewright.ir.dtypes import F32, promote
from tilewright.ir.graph.base import tensor
from tilewright.ir.graph.elementwise import CastOp, MapOp
from tilewright.ir.graph.indexing import GatherOp, StateUpdateOp
from tilewright.ir.graph.linear_attention import ContinuedLinearAttentionOp, LinearAttentionOp
from tilewright.ir.graph.reduction import ReduceOp
from tilewright.ir.graph.shape import ConcatOp, PadOp, ReshapeOp, SliceOp, TransposeOp
from tilewright.ir.graph.structure import FuncOp
from tilewright.ir.graph.windows import ConvolutionOp
from tilewright.ir.operation import TwOperation
from tilewright.ir.types import TensorType
from tilewright.passes.rewriting import defined

if TYPE_CHECKING:
    from tilewright.passes.kv_cache.step import Stepper

ROWS = "rows"


def taps_of(reach: int) -> str:
    """The argument [tokens, reach + 1] with the places of a token's inputs, from `reach` tokens back to its own."""
    return f"taps_{reach}"


def ends_of(reach: int) -> str:
    """The argument [requests, reach] with the places of a request's last inputs."""
    return f"ends_{reach}"


@dataclass(frozen=True)
class Row:
    """A state by name, a row a request."""

    name: str
    kind: TensorType

    @property
    def bytes(self) -> int:
        """Of one row."""
        return product(self.kind.dims[1:]).evaluate({}) * self.kind.dtype.bits // 8


@dataclass(frozen=True)
class KeptRows:
    """The states with a row a request, which every token overwrites, and the bytes of a row of all.

    reaches: of the convolutions, how many tokens they see before their own, each number once.
    """

    states: tuple[str, ...]
    bytes: int
    reaches: tuple[int, ...]


@dataclass(frozen=True)
class Window:
    """A causal convolution along the tokens. x: its input [batch, channels, tokens], padding left out. reach: how many
    tokens before its own it sees at most.
    """

    x: SSAValue
    reach: int


def windows_of(main: FuncOp, tokens: str) -> dict[Operation, Window | str]:
    """The convolutions along the tokens' axis, each with why it cannot go on from step to step where it cannot."""
    found: dict[Operation, Window | str] = {}
    for op in main.block.ops:
        if isinstance(op, ConvolutionOp) and _along_tokens(op, tokens):
            found[op] = _window(op, tokens)
    return found


def _along_tokens(op: ConvolutionOp, tokens: str) -> bool:
    return tensor(op.x).rank == 3 and not op.channels_last.data and tokens in tensor(op.x).dims[2].symbols


def _window(op: ConvolutionOp, tokens: str) -> Window | str:
    x, low, length = op.x, op.padding_low.data[0], Expr.of(tokens)
    padded = defined(x, PadOp)
    if padded is not None and padded.value.data == 0 and padded.low.data[:2] == padded.high.data[:2] == _NONE:
        before = padded.low.data[2].constant
        x, low = padded.x, low + (before or 0)
        if before is None:
            return f"it is padded with {padded.low.data[2]} zeros"
    taps = op.windows[0].constant
    if tensor(x).dims[2] != length or taps is None:
        return f"{tensor(x)} mixes tokens with something else along axis 2"
    if op.strides.data != (1,):
        return "it leaves tokens out"
    if not op.depthwise:
        return "its filters see several channels, and a step continues depthwise convolutions alone"
    if low < (taps - 1) * op.dilation.data[0]:
        return "tokens see later ones"
    if tensor(op.out).dims[2] != length and not all(cuts_tokens(use.operation, tokens) for use in op.out.uses):
        return "its results before the first token or after the last are read"
    return Window(x, low)


_NONE = (Expr.of(0), Expr.of(0))


def cuts_tokens(op: Operation, tokens: str) -> bool:
    """Whether an op takes the first results of a convolution, one a token, and all channels."""
    if not isinstance(op, SliceOp):
        return False
    kept = zip(op.starts.data, op.stops.data, [*tensor(op.x).dims[:2], Expr.of(tokens)], strict=True)
    return all(step == 1 for step in op.strides) and all(a == Expr.of(0) and b == n for a, b, n in kept)


def states_of(main: FuncOp, windows: Mapping[Operation, Window | str], rows: int) -> dict[Operation, Row]:
    """What the recurrences and convolutions of a model keep for `rows` requests."""
    found: dict[Operation, Row] = {}
    for op in main.block.ops:
        window = windows.get(op)
        if isinstance(op, LinearAttentionOp):
            queries, values = tensor(op.queries), tensor(op.values)
            dims = (rows, values.dims[2], queries.dims[3], values.dims[3])
            found[op] = Row(f"row.{len(found)}.sums", TensorType.of(dims, promote(values.dtype, F32)))
        elif isinstance(window, Window) and window.reach:
            x = tensor(window.x)
            found[op] = Row(f"row.{len(found)}.inputs", TensorType.of((rows, window.reach, x.dims[1]), x.dtype))
    return found


class PerRequest:
    """Writes into a step what goes on from rows of states."""

    def __init__(self, step: Stepper, states: Mapping[Operation, Row]) -> None:
        self.step, self.states = step, states

    def recurrence(self, op: LinearAttentionOp) -> SSAValue:
        """graph.linear_attention of the step's tokens [1, tokens, heads, features]."""
        step = self.step
        flat = [self._add(ReshapeOp, step.values[x], op, dims=tensor(step.values[x]).dims[1:]) for x in op.operands]
        before = self._read(op)
        made = ContinuedLinearAttentionOp.make(*flat, before, step.given["offsets"], step.given[ROWS], like=op)
        step.add(made)
        self._write(op, before, made.ends)
        return self._add(ReshapeOp, made.out, op, dims=[1, *tensor(made.out).dims])

    def convolution(self, op: ConvolutionOp, window: Window) -> SSAValue:
        """A causal convolution of the step's tokens: [1, channels, tokens]."""
        step, reach = self.step, window.reach
        turned = self._add(TransposeOp, step.values[window.x], op, permutation=[0, 2, 1])
        _, tokens, channels = tensor(turned).dims
        x = self._add(ReshapeOp, turned, op, dims=[tokens, channels])
        line = x
        if reach:
            before = self._read(op)
            held = self._add(GatherOp, before, step.given[ROWS], op, axis=0)
            requests = tensor(held).dims[0]
            held = self._add(ReshapeOp, held, op, dims=[requests * reach, channels])
            line = self._add(ConcatOp, [held, x], op, axis=0)
            self._write(op, before, self._add(GatherOp, line, step.given[ends_of(reach)], op, axis=0))
        return self._add(TransposeOp, self._summed(op, line, reach, tokens), op, permutation=[0, 2, 1])

    def _summed(self, op: ConvolutionOp, line: SSAValue, reach: int, tokens: Expr) -> SSAValue:
        """The taps' products added up in their order, and the bias: [1, tokens, channels]."""
        step, taps, apart = self.step, op.windows[0].constant or 0, op.dilation.data[0]
        places: SSAValue = step.given[taps_of(reach)]
        channels = tensor(line).dims[1]
        wide, kind = promote(tensor(line).dtype, F32), tensor(op.out).dtype
        last = (taps - 1) * apart + 1
        if (last, apart) != (reach + 1, 1):
            places = self._add(SliceOp, places, op, starts=[0, 0], stops=[tokens, last], steps=[1, apart])
        near = self._cast(self._add(GatherOp, line, places, op, axis=0), wide.name, op)
        by_tap = self._add(TransposeOp, self._add(ReshapeOp, step.values[op.w], op, dims=[channels, taps]), op,
                           permutation=[1, 0])  # fmt: skip
        products = self._add(MapOp, [near, self._cast(by_tap, wide.name, op)], op, fn="mul")
        found = self._add(ReduceOp, products, op, fn="sum", axes=[1], keepdims=False)
        if op.bias is not None:
            found = self._add(MapOp, [found, self._cast(step.values[op.bias], wide.name, op)], op, fn="add")
        return self._add(ReshapeOp, self._cast(found, kind.name, op), op, dims=[1, tokens, channels])

    def _read(self, op: TwOperation) -> SSAValue:
        """What an op keeps, as it is before the step."""
        return self.step.read(self.states[op].name, self.states[op].kind, op)

    def _write(self, op: TwOperation, before: SSAValue, rows: SSAValue) -> None:
        after = self._add(StateUpdateOp, before, self.step.given[ROWS], rows, op, axis=0)
        self.step.write(self.states[op].name, after)

    def _cast(self, x: SSAValue, dtype: str, op: TwOperation) -> SSAValue:
        return x if tensor(x).dtype.name == dtype else self._add(CastOp, x, op, dtype=dtype)

    def _add(self, kind: type[TwOperation], *operands: object, **properties: object) -> SSAValue:
        """An op in the step; the last operand is the op whose place it takes."""
        *given, like = operands
        return self.step.add(kind.make(*given, **properties, like=like))  # type: ignore[arg-type]
