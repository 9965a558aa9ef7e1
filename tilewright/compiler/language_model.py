"""compile_lm(): from a causal model to one that generates step by step, its keys and values in pages.

model --capture--> ids to logits --canonicalize, recognize--> --kv_cache.step_of--> step --finish--> program
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from tilewright.compiler.causal import MOST_TOKENS, is_encoder_decoder, require_language_model
from tilewright.compiler.compiled import Compiled
from tilewright.compiler.compressing import compact_of, compressor_of
from tilewright.compiler.entry import finish, remembered, store_of
from tilewright.compiler.kv_cache import KVCache
from tilewright.compiler.options import Options
from tilewright.compiler.report import Report
from tilewright.compiler.stopwatch import Progress, Stopwatch
from tilewright.compiler.taken import Memory
from tilewright.compiler.target import Target
from tilewright.errors import OptionError, StepError, TilewrightError
from tilewright.frontend.captured import Captured
from tilewright.frontend.capturing import capture
from tilewright.frontend.directories import load_directory, read_config
from tilewright.frontend.identity import bytes_of, tensors_of
from tilewright.ir.dims import Dim, DimSpace
from tilewright.ir.graph.base import tensor
from tilewright.ir.machine import TileRules
from tilewright.ir.module import functions
from tilewright.ir.passing import Context, Pipeline, run_pipeline
from tilewright.ir.signature import Argument, Input, Output, Parameter, Signature
from tilewright.ir.trees import LEAF, Tree
from tilewright.passes.kv_cache import NEAR_GROUP, Encoder, PagedLayout, Step, name_positions, step_of
from tilewright.passes.kv_cache.layout import Codes, Compressible, Kept
from tilewright.passes.kv_cache.per_request import KeptRows
from tilewright.passes.pipeline import PASSES
from tilewright.runtime.generation.compiled_step import Addressing, CompiledStep, RowStates
from tilewright.runtime.generation.compressor import Compressor
from tilewright.runtime.generation.language_model import LanguageModel
from tilewright.runtime.generation.step import CacheGroup, StepLayout
from tilewright.runtime.generation.tokenizer import FolderTokenizer, Tokenizer

# What a step is made from: equal things in one form, and attention as an op.
_BEFORE = "canonicalize,fold,canonicalize,recognize,canonicalize"
# the options that compile() does not have
_OWN: Final = ("kv", "max_tokens", "max_source", "max_batch", "max_step")


@dataclass(frozen=True)
class Cached:
    """What is known of a step besides its code: see `Step`."""

    groups: tuple[Kept, ...]
    pages: Mapping[str, int]
    vocabulary: int
    rows: KeptRows
    crossed: tuple[str, ...] = ()
    cross_bytes: int = 0
    compressible: tuple[Compressible, ...] = ()

    @staticmethod
    def of(step: Step, layout: PagedLayout) -> Cached:
        """The part of a step that outlives its module. crossed, cross_bytes: what an encoder leaves a request."""
        encoder = step.encoder
        crossed = tuple(encoder.states) if encoder else ()
        cross_bytes = encoder.row_bytes(layout.most_requests) if encoder else 0
        return Cached(step.groups, step.pages, step.vocabulary, step.rows, crossed, cross_bytes, step.compressible)

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "groups": [asdict(group) for group in self.groups],
            "pages": dict(self.pages),
            "vocabulary": self.vocabulary,
            "rows": asdict(self.rows),
            "compressible": [asdict(layer) for layer in self.compressible],
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Cached:
        """What `to_json` gave."""
        groups = []
        for group in data["groups"]:
            codes = None if group["codes"] is None else Codes(**group["codes"])
            listed = {"layers": tuple(group["layers"]), "states": tuple(group["states"])}
            groups.append(Kept(**{**group, **listed, "codes": codes}))
        rows = KeptRows(tuple(data["rows"]["states"]), data["rows"]["bytes"], tuple(data["rows"]["reaches"]))
        compressible = tuple(Compressible(**layer) for layer in data["compressible"])
        return Cached(tuple(groups), data["pages"], data["vocabulary"], rows, compressible=compressible)


@dataclass(frozen=True)
class StepCode:
    """A compiled step and what it was made as. Calling `compiled`: see `Step.arguments`. encoder: of an encoder-decoder
    model, compiled; see `passes.kv_cache.encoding`.
    """

    compiled: Compiled
    step: Cached
    layout: PagedLayout
    encoder: Compiled | None = None

    def program(self, start: int | None = None, compressor: Compressor | None = None) -> CompiledStep:
        """The step as the runtime's protocol, with a cache of its own: one program, one cache. start: the first token
        of every answer of an encoder-decoder model. compressor: where the layout is compact.
        """
        step, layout = self.step, self.layout
        cached = StepLayout(
            vocabulary=step.vocabulary,
            max_tokens=layout.most_tokens,
            step_tokens=layout.most_step,
            step_requests=layout.most_requests,
            page_size=layout.page,
            groups=tuple(_group(g, step.pages[g.name]) for g in step.groups),
            state_rows=layout.most_requests if step.rows.states or step.crossed else 0,
            recurrent_bytes=step.rows.bytes,
            source_tokens=layout.most_source,
            cross_bytes=step.cross_bytes,
            start=start,
            compression=compressor.compression if compressor else None,
        )
        groups = tuple(
            Addressing(g.states, layout.page, g.window, g.columns, g.unit, g.compact, g.read) for g in step.groups
        )
        coded = [i for i, group in enumerate(step.groups) if group.codes]
        near = [i for i, group in enumerate(step.groups) if group.name == NEAR_GROUP]
        rows = RowStates(step.rows.states, step.rows.reaches, step.crossed)
        return CompiledStep(
            self.compiled.executable, cached, groups, (coded[0], near[0]) if coded else None, rows,
            self.encoder.executable if self.encoder else None, compressor,
        )  # fmt: skip


def _group(kept: Kept, pages: int) -> CacheGroup:
    """A group of layers as the runtime counts it."""
    return CacheGroup(
        kept.name, pages, kept.token_bytes, kept.window, page_extra=kept.page_extra, compact=kept.compact,
        observed=not kept.read,
    )  # fmt: skip


class CompiledLanguageModel(LanguageModel):
    """A language model with its compiled step: `compiled`, and its report, which says where the cache lies and why.

    encoder: of an encoder-decoder model, compiled: it runs once a request; else None.
    """

    def __init__(
        self, code: StepCode, tokenizer: Tokenizer | None, end: tuple[int, ...], start: int | None = None,
        compressor: Compressor | None = None,
    ) -> None:  # fmt: skip
        super().__init__(code.program(start, compressor), tokenizer, end=end)
        self.compiled, self.encoder = code.compiled, code.encoder

    def __repr__(self) -> str:
        layout = self.program.layout
        return f"<LanguageModel {self.compiled.facts.model}, {layout.max_tokens} tokens, {layout.vocabulary} ids>"

    @property
    def report(self) -> Report:
        """What a step does; `.at(tokens=1, requests=1, wanted=1, pages_full=8)` for numbers."""
        return self.compiled.report


def compile_language_model(
    model: Any,
    *,
    kv: KVCache | None = None,
    max_tokens: int | None = None,
    max_source: int | None = None,
    max_batch: int = 8,
    max_step: int = 512,
    progress: Progress | None = None,
    **given: Any,
) -> CompiledLanguageModel:
    """See tilewright.compile_lm. progress: told what runs, see `Progress`."""
    counts = {"max_tokens": max_tokens, "max_source": max_source, "max_batch": max_batch, "max_step": max_step}
    faults = [f"{n}={c!r} is not a number from 1 on" for n, c in counts.items() if c is not None and not _is_count(c)]
    if not isinstance(kv, (KVCache, type(None))):
        faults.append(f"kv={kv!r} is not a tw.KVCache")
    if given.get("check") is not None:
        faults.append("check belongs to compile(): a step has no original to be compared with")
    if faults:
        raise OptionError(faults, step="write compile_lm(model, max_tokens=4096, kv=tw.KVCache(page=16))")
    tokenizer: Tokenizer | None = None
    if isinstance(model, (str, os.PathLike)):
        folder = Path(model)
        require_language_model(read_config(folder), folder)
        model = load_directory(folder)
        tokenizer = FolderTokenizer(folder) if (folder / "tokenizer.json").is_file() else None
    known, encodes = _positions(model), is_encoder_decoder(getattr(model, "config", None))
    start = _start(model) if encodes else None
    if max_source is not None and not encodes:
        raise OptionError(
            f"max_source={max_source}: {type(model).__name__} has no encoder to read a source", step="leave it out"
        )
    for name, asked in (("max_tokens", max_tokens), ("max_source", max_source)):
        if asked is not None and known is not None and asked > known:
            raise OptionError(
                f"{name}={asked} is more than the {known} positions of {type(model).__name__}",
                step=f"write {name}={known}",
            )
    most, cache = max_tokens or min(known or MOST_TOKENS, MOST_TOKENS), kv or KVCache()
    layout = PagedLayout(
        cache.page_of(most), most, min(max_step, most * max_batch), max_batch, cache.bytes, codes=cache.codes,
        most_source=(max_source or most) if encodes else 0, compact=compact_of(cache.compress),
    )  # fmt: skip
    code, compressor = compile_step(model, layout, progress=progress, **given), None
    if cache.compress is not None:
        executable = code.compiled.executable
        compressor = compressor_of(cache.compress, code.step.compressible, executable.program, most, given)
    return CompiledLanguageModel(code, tokenizer, tokenizer.end if tokenizer else _ends(model), start, compressor)


def _is_count(given: Any) -> bool:
    return isinstance(given, int) and not isinstance(given, bool) and given >= 1


def _positions(model: Any) -> int | None:
    """The longest sequence that a transformers model is made for, if it says so."""
    config: Any = getattr(model, "config", None)
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    found = getattr(config, "max_position_embeddings", None)
    return found if isinstance(found, int) and found > 0 else None


def _start(model: Any) -> int:
    """The first token of every answer of an encoder-decoder model. Raises StepError where it names none."""
    for place in ("generation_config", "config"):
        found = getattr(getattr(model, place, None), "decoder_start_token_id", None)
        if isinstance(found, int):
            return found
    raise StepError(
        f"{type(model).__name__} has an encoder, and names no token that its answers start with",
        step="set model.config.decoder_start_token_id",
    )


def _ends(model: Any) -> tuple[int, ...]:
    """The ids that end an answer, as the model itself says."""
    found = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    return tuple(found) if isinstance(found, (list, tuple)) else () if found is None else (int(found),)


def arranged(layout: PagedLayout, rules: TileRules) -> PagedLayout:
    """The layout with the segments and parts of keys that a machine adds up in."""
    segment = rules.common_segment
    return replace(layout, segment=segment, part=max(1, rules.key_part // segment) * segment)


def compile_step(model: Any, layout: PagedLayout, *, progress: Progress | None = None, **given: Any) -> StepCode:
    """The step of a causal transformers or PyTorch model of ids [batch, tokens] that returns logits, or an object with
    `.logits`; with `layout.most_source`, of an encoder-decoder model, and its encoder. StepError where it cannot be
    taken apart; else raises as tilewright.compile.
    """
    options, watch = _options(given), Stopwatch(progress)
    target = Target.of(options)
    target.backend.warm()
    layout = arranged(layout, target.machine.rules)
    given_as = _as_ids_to_logits(model, layout)
    name, store, memory, encoder = type(model).__qualname__, store_of(options), None, None
    try:
        with watch.stage("identity"):
            if store.cache is not None and target.runs_here:
                store.contents.begin(tensors_of(given_as[0]).values())
            # what a step is made as follows from the model's graph and from these; two programs are made of one capture
            # of an encoder-decoder, which is not remembered
            made_into = {"layout": asdict(layout), "passes": _BEFORE, "machine": target.machine.key()}
            if not layout.most_source:
                memory = Memory.of(store, *given_as, fallback=options.fallback, made_into=made_into)
        if memory is not None and memory.taken is not None:
            cached = Cached.from_json(memory.besides)
            known = remembered(memory, target, options, watch, cache_notes(cached, layout))
            if known is not None:
                return StepCode(known, cached, layout)
        if target.runs_here and (store.cache is None or (memory is not None and memory.identity.factors is not None)):
            store.begin_room(bytes_of(given_as[0], options.float_bytes))
        with watch.stage("capture"):
            try:
                whole = capture(*given_as, fallback=options.fallback)
            except TilewrightError as fault:
                raise _of_ids(fault, name, *given_as[:2]) from fault
            _refuse_decisions(whole)
            ctx = Context(machine=target.machine, dims=DimSpace(whole.dims), read_weight=whole.weights.__getitem__)
            name_positions(whole.module)
            run_pipeline(Pipeline.parse(_BEFORE, PASSES), whole.module, ctx)
            step = step_of(whole.module, layout)
            cached = Cached.of(step, layout)
        if memory is not None:
            memory = replace(memory, besides=cached.to_json())
        compiled = finish(_as_captured(whole, step, name), target, options, watch, cache_notes(cached, layout), memory)
        if step.encoder is not None:
            encoder = finish(_encoder_captured(whole, step.encoder, name), target, options, Stopwatch(progress), [])
    finally:
        store.forget()
    return StepCode(compiled, cached, layout, encoder)


def _options(given: Mapping[str, Any]) -> Options:
    return Options.of(given, caller="compile_lm()", more=_OWN, less=("check",), within={"kv": KVCache})


def cache_notes(step: Cached, layout: PagedLayout) -> list[str]:
    """Where the cache lies, what a token takes and why so: one sentence a group of layers, for the report."""
    notes = []
    for group in step.groups:
        layers, count, kept, size = len(group.layers), step.pages[group.name], "all tokens", layout.page_bytes(group)
        if group.codes is not None:
            kept = f"all tokens in codes of {group.codes.bits} bits, and {group.page_extra} B a page for scales of keys"
        elif not group.read:
            kept = f"the last {(group.window or 1) - 1} queries, by which it is chosen what to give up"
        elif group.compact:
            kept = "all tokens until some are given up, and then those that are left"
        elif group.window is not None:
            pages = layout.held(group.window)
            kept = f"a ring of {pages} pages a request, for a window of {group.window} and a step of {layout.most_step}"
        whole = layout.held(group.window) * size
        notes.append(
            f"cache {group.name}: {layers} layers, {group.token_bytes} B a token, {kept}; {count} pages of "
            f"{layout.page} tokens, {count * size} B; a request wastes {size - group.token_bytes} B at most, where one "
            f"piece of memory would take {whole} B from its first token on"
        )
    if step.rows.states:
        notes.append(
            f"cache rows: {len(step.rows.states)} states that every token overwrites, {step.rows.bytes} B a request; "
            f"{layout.most_requests} rows"
        )
    if step.crossed:
        notes.append(
            f"cache source: {len(step.crossed)} states that the encoder fills once, {step.cross_bytes} B a request for "
            f"{layout.most_source} source tokens; {layout.most_requests} rows"
        )
    return notes


def _refuse_decisions(whole: Captured) -> None:
    """A step sees other numbers of tokens than the sequence has: what a model decides by those, it cannot know."""
    if whole.guards or whole.states:
        faults = [f"the model decides by its sizes: {guard}" for guard in whole.guards]
        faults += [f"the model keeps {name} from call to call" for name in whole.states]
        raise StepError(faults, step="use a model whose forward is the same for every number of tokens")


def _as_ids_to_logits(model: Any, layout: PagedLayout) -> tuple[Any, tuple[Any, ...], dict[str, Any], dict[str, Any]]:
    """What is captured of a model: a module, example arguments and dims, as `capture` takes them."""
    import torch

    class Logits(torch.nn.Module):
        """The model's logits, all of them."""

        def __init__(self, model: Any) -> None:
            super().__init__()
            self.model = model

        def forward(self, ids: torch.Tensor) -> Any:
            found = self.model(ids, use_cache=False) if hasattr(self.model, "generate") else self.model(ids)
            return found.logits if hasattr(found, "logits") else found

    class Answer(Logits):
        """The same of what answers a source."""

        def forward(self, source: torch.Tensor, ids: torch.Tensor) -> Any:  # type: ignore[override]
            return self.model(input_ids=source, decoder_input_ids=ids, use_cache=False).logits

    batch, tokens = Dim("batch", 1, layout.most_requests + 1), Dim("tokens", 1, max(layout.most_tokens, 9))
    ids = torch.zeros(2, 8, dtype=torch.int64)
    if layout.most_source:
        source, dims = torch.zeros(2, 7, dtype=torch.int64), (batch, Dim("source", 1, max(layout.most_source, 9)))
        return Answer(model).eval(), (source, ids), {}, {"source": dims, "ids": (batch, tokens)}
    return Logits(model).eval(), (ids,), {}, {"ids": (batch, tokens)}


def _of_ids(fault: TilewrightError, name: str, model: Any, args: tuple[Any, ...]) -> TilewrightError:
    """What became of a capture: where torch alone fails on ids, too, the model is none of ids, and the example ours."""
    import torch

    try:
        with torch.no_grad():
            model(*args)
    except Exception as own:  # noqa: BLE001 (whatever a model raises: it is not one of ids)
        given = ", ".join(f"i64{list(ids.shape)}" for ids in args)
        reason = " ".join(str(own).split())[:300]
        return StepError(
            f"{name} fails when it is called with token ids, {given}: {type(own).__name__}: {reason}",
            step="give a model of token ids [batch, tokens] that returns logits; tw.compile(model, args) takes others",
        )
    return fault


def _encoder_captured(whole: Captured, encoder: Encoder, name: str) -> Captured:
    """The encoder in the place of the model it was taken from."""
    results = [tensor(x) for x in functions(encoder.module)["main"].block.last_op.operands]  # type: ignore[union-attr]
    given = encoder.argument
    signature = Signature(
        (Parameter("ids"),),
        (Argument("ids", LEAF, (Input("ids", given.dtype, given.dims),)),),
        Tree("tuple", children=(LEAF,) * len(results)),
        tuple(Output(kind.dtype, kind.dims, index=i) for i, kind in enumerate(results)),
    )
    return replace(
        whole, source=replace(whole.source, model=f"{name}, encoder"), module=encoder.module, signature=signature,
        dims=encoder.dims,
    )  # fmt: skip


def _as_captured(whole: Captured, step: Step, name: str) -> Captured:
    """The step in the place of the model it was made from. name: of the model."""
    arguments = tuple(
        Argument(name, LEAF, (Input(name, kind.dtype, kind.dims),)) for name, kind in step.arguments.items()
    )
    main = functions(step.module)["main"]
    logits = tensor(main.block.last_op.operands[0])  # type: ignore[union-attr]
    signature = Signature(
        tuple(Parameter(name) for name in step.arguments),
        arguments,
        LEAF,
        (Output(logits.dtype, logits.dims, index=0),),
    )
    return replace(
        whole, source=replace(whole.source, model=name), module=step.module, signature=signature, dims=step.dims,
        zeroed=frozenset(step.states),
    )  # fmt: skip
