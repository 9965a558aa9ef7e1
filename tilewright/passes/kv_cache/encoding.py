"""Encoder-decoder models: what the encoder computes for the decoder's attention is computed once and kept by request.

An attention whose queries are the tokens' and whose keys and values come of the source alone (cross attention) reads
them from a state with a page of `most_source` tokens a request. The ops behind them are a program of their own, source
ids [source] -> keys and values [heads, source, features] of each such attention. To the kernel a source is a sequence
in one page, all of which every token sees: `sources` gives the place of its last key as every token's own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from xdsl.dialects.builtin import ModuleOp
from xdsl.ir import Operation, SSAValue

from tilewright.errors import Problem
from tilewright.ir.attributes import Dims
from tilewright.ir.dims import Dim, Expr, product
from tilewright.ir.graph.attention import AttentionOp
from tilewright.ir.graph.base import tensor
from tilewright.ir.graph.shape import ReshapeOp
from tilewright.ir.graph.structure import FuncOp
from tilewright.ir.module import new_module
from tilewright.ir.operation import TwOperation
from tilewright.ir.types import TensorType
from tilewright.passes.rewriting import splat

SOURCE, SOURCES = "source", "sources"


@dataclass(frozen=True)
class Encoder:
    """The encoder as a module. argument: source ids. states: where its results are kept, by name and type, in their
    order, a page a request.
    """

    module: ModuleOp
    argument: TensorType
    states: dict[str, TensorType]
    dims: tuple[Dim, ...]

    def row_bytes(self, rows: int) -> int:
        """Bytes that a request of `rows` keeps."""
        return sum(product(kind.dims).evaluate({}) * kind.dtype.bits // 8 // rows for kind in self.states.values())


def crossed_of(main: FuncOp, source: SSAValue) -> list[AttentionOp]:
    """The attentions of tokens to the source."""
    length = tensor(source).dims[1]
    return [
        op
        for op in main.block.ops
        if isinstance(op, AttentionOp) and tensor(op.k).dims[-2] == length != tensor(op.q).dims[-2]
    ]


def state_names(number: int) -> list[str]:
    """The states of an attention to the source; they are counted from 0 in the order of the graph."""
    return [f"cross.{number}.{part}" for part in ("keys", "values")]


def unfit_crossed(op: AttentionOp) -> Iterator[str]:
    """Why an attention to the source cannot go on from step to step."""
    if tensor(op.q).rank != 4:
        yield f"q is {tensor(op.q)}, not [batch, heads, tokens, features]"
    if op.mask.data != "none" or op.window.data:
        yield f"its mask {op.mask.data!r} relates tokens to places of the source"
    for name in ("bias", "valid", "segments"):
        value = getattr(op, name)
        # one number for all pairs changes no weight, but that of a sink
        if value is not None and not (name == "bias" and splat(value) is not None and op.sinks is None):
            yield f"its {name} relates tokens to places of the source"
    if op.lse.data:
        yield "its logarithms of sums are read"
    for name in ("q_positions", "k_positions"):
        if getattr(op, name) is not None:
            yield f"its {name.replace('_', ' ')} are given"


def encoder_of(
    main: FuncOp, source: SSAValue, ids: SSAValue, crossed: list[AttentionOp], requests: int, most: int
) -> tuple[Encoder, list[Problem]]:
    """The encoder of so many requests with sources of at most `most` tokens; and what is in the way."""
    batch, length = (next(iter(d.symbols)) for d in tensor(source).dims)
    sizes = {batch: Expr.of(1), length: Expr.of(SOURCE)}
    argument = TensorType.of((SOURCE,), tensor(source).dtype)
    made = FuncOp.begin("main", {"ids": argument})
    problems: list[Problem] = []

    def add(op: TwOperation) -> SSAValue:
        made.block.add_op(op)
        return op.results[0]

    wanted = [value for op in crossed for value in (op.k, op.v)]
    needed = _behind(wanted)
    for op in crossed:
        if any(ids in behind.operands for behind in _behind([op.k, op.v])):
            problems.append(Problem("its keys and values hang on the tokens", op=op.name, where=op.loc))
    if problems:
        return Encoder(new_module(()), argument, {}, ()), problems
    values: dict[SSAValue, SSAValue] = {source: add(ReshapeOp.make(made.block.args[0], dims=[1, SOURCE]))}
    for op in main.block.ops:
        if op in needed:
            copy = resized(op, [values[x] for x in op.operands], sizes)
            made.block.add_op(copy)
            values.update(zip(op.results, copy.results, strict=True))
    results, states = [], {}
    for number, op in enumerate(crossed):
        for name, value in zip(state_names(number), (op.k, op.v), strict=True):
            flat = add(ReshapeOp.make(values[value], dims=list(tensor(values[value]).dims[1:]), like=op))
            results.append(flat)
            heads, _, features = tensor(flat).dims
            states[name] = TensorType.of((requests, heads, most, features), tensor(flat).dtype)
    made.finish(results, [name.replace(".", "_") for name in states])
    dims = (Dim(SOURCE, 1, most),)
    module = new_module(dims)
    module.body.block.add_op(made)
    return Encoder(module, argument, states, dims), []


def _behind(values: list[SSAValue]) -> set[Operation]:
    """The ops that values are computed by."""
    found: set[Operation] = set()
    left = list(values)
    while left:
        op = left.pop().owner
        if isinstance(op, Operation) and op not in found:
            found.add(op)
            left += op.operands
    return found


def resized(op: Operation, operands: list[SSAValue], sizes: Mapping[str, Expr]) -> Operation:
    """The op on other operands, with dims of its types and properties replaced."""
    made = op.clone(dict(zip(op.operands, operands, strict=True)))
    for name, attribute in op.properties.items():
        if isinstance(attribute, Dims):
            made.properties[name] = Dims(tuple(e.substitute(sizes) for e in attribute.data))
    for old, new in zip(op.results, made.results, strict=True):
        kind = tensor(old)
        new._type = TensorType.of([d.substitute(sizes) for d in kind.dims], kind.dtype)
    return made
