"""From a model over whole sequences to a step over tokens of several requests, whose keys and values stay.

    ids [batch, tokens] -> logits [batch, tokens, V] becomes
    ids, positions [tokens], offsets [requests+1], wanted [wanted], and for each group of layers that see equally far
    slots [tokens], table [requests, pages] and, with a window, places [tokens] -> logits [wanted, V] f32;
    where a request has states of its own (`per_request`), rows [requests] besides

The batch becomes one and the tokens' axis flat: outside attention every op must treat tokens one by one (`token_wise`),
so it does not matter whose they are. Attention's keys and values go to rows of a state's pages (`slots`,
`page_rows`), and its queries read them through `table` (`graph.paged_attention`). What no later token needs, the head
above all, runs on the wanted rows alone. A model that cannot be taken apart so is refused with every op that stands in
the way.

A group with a window holds a request's last pages only, so its table begins at some place of the sequence, and
`places` count from there. The table's beginning is a multiple of `unit`, because the order of summing over keys hangs
on where the machine's segments of keys begin, and chunks on where chunks begin.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from xdsl.dialects.builtin import ModuleOp
from xdsl.ir import Operation, SSAValue

from tilewright.errors import Problem, StepError
from tilewright.ir.dims import Dim, Expr, product
from tilewright.ir.dtypes import F32, I32, I64
from tilewright.ir.graph.attention import AttentionOp
from tilewright.ir.graph.base import tensor
from tilewright.ir.graph.contraction import MatmulOp
from tilewright.ir.graph.elementwise import CastOp
from tilewright.ir.graph.indexing import GatherOp, StateUpdateOp
from tilewright.ir.graph.linear_attention import LinearAttentionOp
from tilewright.ir.graph.paging import PagedAttentionOp
from tilewright.ir.graph.shape import ConcatOp, PadOp, ReshapeOp, SliceOp, TransposeOp
from tilewright.ir.graph.structure import FuncOp, PositionsOp, ReturnOp, StateReadOp, StateWriteOp
from tilewright.ir.graph.windows import ConvolutionOp
from tilewright.ir.module import functions, new_module
from tilewright.ir.operation import TwOperation
from tilewright.ir.types import TensorType
from tilewright.passes.kv_cache.attentions import groups_of, sources_of, unfit
from tilewright.passes.kv_cache.compact import log_counts, observe
from tilewright.passes.kv_cache.distances import distances_of
from tilewright.passes.kv_cache.encoding import (
    SOURCES,
    Encoder,
    crossed_of,
    encoder_of,
    resized,
    state_names,
    unfit_crossed,
)
from tilewright.passes.kv_cache.latents import Latent, latent_of
from tilewright.passes.kv_cache.layout import LATENTS, NAMES, Compressible, Kept, PagedLayout, names
from tilewright.passes.kv_cache.page_rows import rows_of
from tilewright.passes.kv_cache.per_request import (
    ROWS,
    KeptRows,
    PerRequest,
    Window,
    ends_of,
    states_of,
    taps_of,
    windows_of,
)
from tilewright.passes.kv_cache.quantized import CLOSED, CLOSED_CODES, CLOSED_NEAR, NEAR_GROUP, Quantized
from tilewright.passes.kv_cache.slopes import slopes_of
from tilewright.passes.kv_cache.token_wise import Tokens
from tilewright.passes.rewriting import defined

TOKENS, REQUESTS, WANTED = "tokens", "requests", "wanted"


@dataclass(frozen=True)
class Step:
    """A step as a module, its arguments' types by name, the states it needs, and the number of logits a token has.

    groups: in the order in which their layers first come. pages: of each group's states, by the group's name. rows: the
    states with a row a request. encoder: what fills the states of cross attention, where there is any. compressible:
    what may be given up, where that was asked for.
    """

    module: ModuleOp
    arguments: dict[str, TensorType]
    states: dict[str, TensorType]
    groups: tuple[Kept, ...]
    pages: dict[str, int]
    rows: KeptRows
    vocabulary: int
    dims: tuple[Dim, ...]
    encoder: Encoder | None = None
    compressible: tuple[Compressible, ...] = ()


def step_of(module: ModuleOp, layout: PagedLayout) -> Step:
    """The step of a causal model: @main takes ids [batch, tokens] and gives logits [batch, tokens, V]; that of an
    encoder-decoder model takes source ids [batch, source] before them.

    The module is to be canonical, with attention recognised; it is not changed. StepError with all that is in the way.
    """
    main = functions(module)["main"]
    return Stepper(main, layout).run()


class Stepper:
    """Writes the step's @main beside the model's."""

    def __init__(self, main: FuncOp, layout: PagedLayout) -> None:
        self.main, self.layout = main, layout
        (self.ids,) = self._only(main.block.args[-1:] if layout.most_source else main.block.args, "argument")
        batch, tokens = (tuple(d.symbols) for d in self._rank(self.ids, 2))
        if len(batch) != 1 or len(tokens) != 1:
            raise StepError(f"ids are {tensor(self.ids)}", step="declare both axes as dims")
        self.batch, self.old = batch[0], tokens[0]
        self.tokens = Tokens(TOKENS)
        self.values: dict[SSAValue, SSAValue] = {}
        self.picked: dict[SSAValue, SSAValue] = {}
        self.states: dict[str, TensorType] = {}
        self.places: dict[tuple[str, Expr], SSAValue] = {}
        self.problems: list[Problem] = []
        self.mixed: set[SSAValue] = set()
        self.encoded: set[SSAValue] = set()
        self.windows = windows_of(main, self.old)
        self.groups = groups_of(main, layout)
        rows = states_of(main, self.windows, layout.most_requests)
        reaches = sorted({window.reach for window in self.windows.values() if isinstance(window, Window)})
        self.rows = KeptRows(
            tuple(row.name for row in rows.values()), sum(row.bytes for row in rows.values()), tuple(reaches)
        )
        self.per_request = PerRequest(self, rows)
        self.crossed, self.encoder, self.source = self._crossed(main)
        cross_bytes = self.encoder.row_bytes(layout.most_requests) if self.encoder else 0
        self.pages = layout.counts(self.groups, self.rows.bytes + cross_bytes)
        self.last_versions: dict[str, SSAValue] = {}
        self.compressible: list[Compressible] = []
        self.layers = 0
        self.of = {layer: [g for g in self.groups if layer in g.layers] for g in self.groups for layer in g.layers}
        step, requests = Dim(TOKENS, 1, layout.most_step), Dim(REQUESTS, 1, layout.most_requests)
        tables = [Dim(group.pages, 1, group.columns) for group in self.groups if group.read]
        closing = [Dim(CLOSED, 0, layout.most_step // layout.page + layout.most_requests)]
        closing = closing if any(group.codes for group in self.groups) else []
        self.dims = (step, requests, Dim(WANTED, 0, layout.most_step), *tables, *closing)
        self.arguments = {
            "ids": TensorType.of((TOKENS,), tensor(self.ids).dtype),
            "positions": TensorType.of((TOKENS,), I64),
            "offsets": TensorType.of((Expr.of(REQUESTS) + 1,), I32),
            "wanted": TensorType.of((WANTED,), I64),
        }
        for group in self.groups:
            self.arguments[group.slots] = TensorType.of((TOKENS,), I64)
            if not group.read:
                continue
            self.arguments[group.table] = TensorType.of((REQUESTS, group.pages), I32)
            if group.places:
                self.arguments[group.places] = TensorType.of((TOKENS,), I64)
        if rows or self.crossed:
            self.arguments[ROWS] = TensorType.of((REQUESTS,), I64)
        for reach in reaches:
            self.arguments[taps_of(reach)] = TensorType.of((TOKENS, reach + 1), I64)
            self.arguments[ends_of(reach)] = TensorType.of((REQUESTS, reach), I64)
        if self.crossed:
            self.arguments[SOURCES] = TensorType.of((TOKENS,), I64)
        if closing:
            self.arguments |= {name: TensorType.of((CLOSED,), I64) for name in (CLOSED_CODES, CLOSED_NEAR)}
        self.made = FuncOp.begin("main", self.arguments)
        self.given = dict(zip(self.arguments, self.made.block.args, strict=True))

    def _crossed(self, main: FuncOp) -> tuple[dict[Operation, int], Encoder | None, str | None]:
        """The attentions to the source, by op with their numbers, what is behind them, and the source's dim."""
        if not self.layout.most_source:
            return {}, None, None
        source = main.block.args[0]
        if (
            len(main.block.args) != 2
            or tensor(source).rank != 2
            or any(len(d.symbols) != 1 for d in tensor(source).dims)
        ):
            raise StepError(
                "an encoder-decoder model takes source ids [batch, source] and ids [batch, tokens]",
                step="wrap the model in one that takes these two and returns its logits alone",
            )
        crossed, most = crossed_of(main, source), self.layout.most_source
        encoder, problems = encoder_of(main, source, self.ids, crossed, self.layout.most_requests, most)
        self.problems += problems
        return {op: i for i, op in enumerate(crossed)}, encoder, next(iter(tensor(source).dims[1].symbols))

    def _only(self, values: Any, what: str) -> tuple[SSAValue]:
        if len(values) != 1:
            raise StepError(
                f"the model has {len(values)} {what}s; a causal language model takes ids and gives logits "
                "[batch, tokens, V], one each",
                step="take the class with the language head (transformers' AutoModelForCausalLM), or wrap the model "
                "in one that returns its logits alone",
            )
        return (values[0],)

    def _rank(self, value: SSAValue, rank: int) -> tuple[Expr, ...]:
        if tensor(value).rank != rank:
            raise StepError(f"ids are {tensor(value)}, not [batch, tokens]", step="give a model of ids [batch, tokens]")
        return tensor(value).dims

    def run(self) -> Step:
        """The step; StepError where an op mixes tokens."""
        last = self.main.block.last_op
        assert isinstance(last, ReturnOp)  # verified: a function ends in its results
        (logits,) = self._only(last.values, "result")
        self.values[self.ids] = self.add(ReshapeOp.make(self.given["ids"], dims=[1, TOKENS]))
        full, needed = self._needed_by_later_tokens(), _needed(logits, self.windows, self.crossed)
        for op in self.main.block.ops:
            if op not in needed:
                continue
            if isinstance(op, AttentionOp) and op in self.crossed:
                self._attend_source(op)
            elif self.source is not None and self._is_encoding(op, self.source):
                continue
            elif isinstance(op, AttentionOp):
                self._attend(op)
            elif isinstance(op, LinearAttentionOp):
                self.values[op.out] = self.per_request.recurrence(op)
            elif isinstance(op, ConvolutionOp) and op in self.windows:
                self._convolve(op)
            elif isinstance(op, SliceOp) and op.x.owner in self.windows:
                self.values[op.out] = self.values[op.x]
            elif isinstance(op, PositionsOp):
                self.values[op.out] = self.given["positions"]
            else:
                self._copy(op, whole=op in full)
        if self.problems:
            raise StepError(
                self.problems, step="use a model whose layers outside attention work on each token by itself"
            )
        if not self.groups and not self.rows.states and not self.crossed:
            raise StepError(
                "the model has no attention and no recurrence, so nothing is kept from token to token",
                step="compile it with tw.compile(): its logits are those of each token by itself",
            )
        if logits in self.encoded:
            raise StepError("the logits are the source's alone", step="return those of the ids that answer it")
        out = self._wanted(logits)
        vocabulary = tensor(out).dims[-1].constant
        if tensor(out).rank != 3 or vocabulary is None:
            raise StepError(
                f"the model returns {tensor(logits)}, not logits [batch, tokens, V]", step="return its logits"
            )
        result = self.add(ReshapeOp.make(out, dims=[WANTED, vocabulary]))
        if tensor(result).dtype != F32:
            result = self.add(CastOp.make(result, dtype=F32.name))
        for name, value in self.last_versions.items():
            self.made.block.add_op(StateWriteOp.make(value, name=name))
        self.made.finish([result], ["logits"])
        module = new_module(self.dims)
        module.body.block.add_op(self.made)
        return Step(
            module, self.arguments, self.states, self.groups, self.pages, self.rows, vocabulary, self.dims,
            self.encoder, tuple(self.compressible),
        )  # fmt: skip

    def _needed_by_later_tokens(self) -> set[Operation]:
        """The ops whose results some attention or recurrence takes: every token's are needed. The rest runs on wanted
        rows.
        """
        found: set[Operation] = set()
        for op in reversed(list(self.main.block.ops)):
            keeps = isinstance(op, (AttentionOp, LinearAttentionOp)) or op in self.windows
            if keeps or any(use.operation in found for r in op.results for use in r.uses):
                found.add(op)
        return found

    def _copy(self, op: Operation, *, whole: bool) -> None:
        """The same op on flat tokens; on the wanted ones where the rest need not be known."""
        dim = TOKENS if whole else WANTED
        operands = [self.values[v] if whole else self._wanted(v) for v in op.operands]
        # one sequence of `dim` tokens
        made = resized(op, operands, {self.batch: Expr.of(1), self.old: Expr.of(dim)})
        fault = Tokens(dim).fault(made)
        if self.mixed.intersection(op.operands):
            # what comes of mixed tokens is no second problem
            self.mixed.update(op.results)
        elif fault is not None:
            self.mixed.update(op.results)
            self.problems.append(Problem(fault, op=op.name, where=op.loc if isinstance(op, TwOperation) else None))
        self.made.block.add_op(made)
        (self.values if whole else self.picked).update(zip(op.results, made.results, strict=True))

    def _wanted(self, value: SSAValue) -> SSAValue:
        """A value's wanted rows; what is the same for all tokens as it is."""
        found = self.picked.get(value)
        if found is None:
            whole = self.values[value]
            axis = self.tokens.axis(whole)
            found = whole if axis is None else self.add(GatherOp.make(whole, self.given["wanted"], axis=axis))
            self.picked[value] = found
        return found

    def _attend(self, op: AttentionOp) -> None:
        if faults := [*unfit(op)]:
            self._refuse(op, faults)
        if self.problems:
            self.values.setdefault(op.out, self._anything(op.out))
            return
        sinks, slopes = None if op.sinks is None else self.values[op.sinks], slopes_of(op)
        if slopes is not None:
            slopes = self.add(ReshapeOp.make(self.values[slopes], dims=[tensor(op.q).dims[1]], like=op))
        layer, self.layers = self.layers, self.layers + 1
        (group, *others), latent = self.of[layer], latent_of(op)
        q = self._by_token(op.q, op)
        if latent is not None:
            out, queries = self._attend_latent(op, latent, names(layer, LATENTS)[0], group, q, sinks)
            observe(self, op, layer, self.of[layer], queries)
        elif others and others[0].name == NEAR_GROUP:
            k, v = (self._by_token(x, op) for x in (op.k, op.v))
            out = Quantized(self, op, layer, group, others[0]).attend(q, k, v, sinks, slopes)
        else:
            k, v = (self._by_token(x, op) for x in (op.k, op.v))
            keys, values = (self.kept(name, group, x, op) for name, x in zip(names(layer, NAMES), (k, v), strict=True))
            counts = log_counts(self, op, layer, group, k)
            out = self._paged(op, group, q, keys, values, sinks, slopes, self._far(op), counts)
            observe(self, op, layer, self.of[layer], q)
        self._by_sequence(op, out)

    def _is_encoding(self, op: Operation, source: str) -> bool:
        """Whether an op computes with what the encoder has of a source; refused where it meets tokens there."""
        if not _speaks_of(op, source) and not self.encoded.intersection(op.operands):
            return False
        self.encoded.update(op.results)
        if any(self.tokens.axis(self.values[x]) is not None for x in op.operands if x in self.values):
            self._refuse(op, ["it brings what the encoder computes to tokens outside attention"])
            self.encoded.difference_update(op.results)
        return True

    def _attend_source(self, op: AttentionOp) -> None:
        """Attention to what the encoder has left in the request's rows."""
        if faults := [*unfit_crossed(op)]:
            self._refuse(op, faults)
        if self.problems or self.encoder is None:
            self.values.setdefault(op.out, self._anything(op.out))
            return
        names = state_names(self.crossed[op])
        keys, values = (self.read(name, self.encoder.states[name], op) for name in names)
        table = self.add(ReshapeOp.make(self.given[ROWS], dims=[REQUESTS, 1], like=op))
        sinks = None if op.sinks is None else self.values[op.sinks]
        out = self.add(
            PagedAttentionOp.make(
                self._by_token(op.q, op), keys, values, self.given[SOURCES], self.given["offsets"], table, sinks,
                page=self.layout.most_source, scale=op.scale.data, softcap=op.softcap.data, like=op,
            )
        )  # fmt: skip
        self._by_sequence(op, out)

    def _refuse(self, op: Operation, faults: list[str]) -> None:
        """Notes why an op cannot be in a step; what follows is looked at, too, so that all problems come at once."""
        if not self.mixed.intersection(op.operands):
            # what comes of mixed tokens is no second problem
            where = op.loc if isinstance(op, TwOperation) else None
            self.problems += [Problem(fault, op=op.name, where=where) for fault in faults]
        self.mixed.update(op.results)
        for result in op.results:
            self.values[result] = self._anything(result)

    def _anything(self, value: SSAValue) -> SSAValue:
        """Some value in the place of one that a step does not have."""
        kind = tensor(value)
        sizes = {self.batch: Expr.of(1), self.old: Expr.of(TOKENS)}
        flat = TensorType.of([d.substitute(sizes) for d in kind.dims], kind.dtype)
        return self.add(StateReadOp.make(name="refused", result_types=[flat]))

    def _convolve(self, op: ConvolutionOp) -> None:
        window = self.windows[op]
        if isinstance(window, Window):
            self.values[op.out] = self.per_request.convolution(op, window)
        else:
            self._refuse(op, [window])

    def _by_sequence(self, op: AttentionOp, out: SSAValue) -> None:
        """[tokens, heads, features] in the place of an attention's result: the sequence's axis first, then the turn, so
        it meets the model's own turns, and both go.
        """
        whole = self.add(ReshapeOp.make(out, dims=[1, *tensor(out).dims], like=op))
        self.values[op.out] = self.add(TransposeOp.make(whole, permutation=[0, 2, 1, 3], like=op))

    def _far(self, op: AttentionOp) -> SSAValue | None:
        """What distances add to logits, for all that there are."""
        found = None if slopes_of(op) is not None else distances_of(op)
        if found is None:
            return None
        return found.table(self.values.__getitem__, self.add, tensor(op.q).dims[1], self.layout.most_tokens)

    def _paged(self, op: AttentionOp, group: Kept, *values: SSAValue | None, first: int = 0) -> SSAValue:
        """graph.paged_attention. values: q, keys, values, sinks, slopes, by_distance and, if any, log_counts. first: so
        many features of keys are values.
        """
        q, keys, held, sinks, slopes, far, *counts = values
        given = [self.given[name] for name in (group.places or "positions", "offsets", group.table)]
        return self.add(
            PagedAttentionOp.make(
                q, keys, held, *given, sinks, slopes, far, *counts, page=self.layout.page, scale=op.scale.data,
                mask=op.mask.data, window=op.window.data, softcap=op.softcap.data, values=first, like=op,
            )
        )  # fmt: skip

    def _attend_latent(
        self, op: AttentionOp, of: Latent, name: str, group: Kept, q: SSAValue, sinks: SSAValue | None
    ) -> tuple[SSAValue, SSAValue]:
        """Attention over latents: queries go through the keys' matrix, results through the values'. And the queries."""
        rows = self.add(ReshapeOp.make(self.values[of.latent], dims=[TOKENS, 1, of.size], like=op))
        if of.shared is not None:
            turned = self.add(ReshapeOp.make(self.values[of.shared], dims=[TOKENS, 1, of.rotated], like=op))
            rows = self.add(ConcatOp.make([rows, turned], axis=2, like=op))
        by_head = self.add(ReshapeOp.make(self.values[of.weight], dims=[of.heads, of.each, of.size], like=op))

        def features(x: SSAValue, axis: int, first: int, count: int) -> SSAValue:
            dims = tensor(x).dims
            starts, stops = [Expr.of(0)] * len(dims), list(dims)
            starts[axis], stops[axis] = Expr.of(first), Expr.of(first + count)
            return self.add(SliceOp.make(x, starts=starts, stops=stops, steps=[1] * len(dims), like=op))

        def turn(x: SSAValue) -> SSAValue:
            return self.add(TransposeOp.make(x, permutation=[1, 0, 2], like=op))

        plain = turn(features(q, 2, 0, of.key_features))
        queries = turn(self.add(MatmulOp.make(plain, features(by_head, 1, of.keys, of.key_features), like=op)))
        if of.rotated:
            queries = self.add(ConcatOp.make([queries, features(q, 2, of.key_features, of.rotated)], axis=2, like=op))
        kept = self.kept(name, group, rows, op)
        mixed = turn(self._paged(op, group, queries, kept, None, sinks, None, None, first=of.size))
        matrix = features(by_head, 1, of.values, of.value_features)
        return turn(self.add(MatmulOp.make(mixed, matrix, transpose_b=True, like=op))), queries

    def _by_token(self, value: SSAValue, op: AttentionOp) -> SSAValue:
        """[1, heads, tokens, features] as [tokens, heads, features]."""
        turned = self.add(TransposeOp.make(self.values[value], permutation=[0, 2, 1, 3], like=op))
        return self.add(ReshapeOp.make(turned, dims=list(tensor(turned).dims[1:]), like=op))

    def kept(self, name: str, group: Kept, rows: SSAValue, op: AttentionOp) -> SSAValue:
        """The state of a group [pages, heads, page, ..] with this step's rows [tokens, heads, ..] put into it."""
        kind = tensor(rows)
        heads, page = kind.dims[1], self.layout.page
        state = TensorType.of((self.pages[group.name], heads, page, *kind.dims[2:]), kind.dtype)
        at = (group.slots, heads)
        if at not in self.places:
            self.places[at] = rows_of(self.given[group.slots], page, heads, self.add)
        return self.updated(name, state, self.places[at], rows, op)

    def updated(self, name: str, state: TensorType, places: SSAValue, rows: SSAValue, op: AttentionOp) -> SSAValue:
        """A state with rows put at places [.., n]; as many leading axes of it as it takes are one line of rows."""
        before, kept = self.read(name, state, op), tensor(rows).rank - tensor(places).rank
        leading = product(state.dims[: len(state.dims) - kept])
        line = self.add(ReshapeOp.make(before, dims=[leading, *state.dims[len(state.dims) - kept :]], like=op))
        put = self.add(StateUpdateOp.make(line, places, rows, axis=0, like=op))
        after = self.add(ReshapeOp.make(put, dims=list(state.dims), like=op))
        self.write(name, after)
        return after

    def read(self, name: str, state: TensorType, op: TwOperation) -> SSAValue:
        """A state of the step, as it is before the step."""
        self.states[name] = state
        return self.add(StateReadOp.make(name=name, result_types=[state], like=op))

    def write(self, name: str, value: SSAValue) -> None:
        """What a state is after the step."""
        self.last_versions[name] = value

    def add(self, op: TwOperation) -> SSAValue:
        """The op's result, the op put at the end of the step."""
        self.made.block.add_op(op)
        return op.results[0]


def _speaks_of(op: Operation, dim: str) -> bool:
    """Whether any of an op's types has a dim."""
    return any(dim in d.symbols for value in (*op.operands, *op.results) for d in tensor(value).dims)


def _needed(
    logits: SSAValue, windows: Mapping[Operation, Window | str], crossed: Mapping[Operation, int]
) -> set[Operation]:
    """The ops that a step has in its own way or copies: not what a bias by slopes comes from, nor the zeros
    before a convolution's first token.
    """
    found: set[Operation] = set()
    left = [logits]
    while left:
        op = left.pop().owner
        if not isinstance(op, Operation) or op in found:
            continue
        found.add(op)
        if isinstance(op, ConvolutionOp) and op in windows:
            window, padded = windows[op], defined(op.x, PadOp)
            x = window.x if isinstance(window, Window) else op.x if padded is None else padded.x
            left += [x, *op.operands[1:]]
        elif isinstance(op, AttentionOp) and op in crossed:
            left += [op.q, *([] if op.sinks is None else [op.sinks])]
        else:
            left += sources_of(op) if isinstance(op, AttentionOp) else op.operands
    return found
