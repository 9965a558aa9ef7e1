"""Many requests on one step program: admission, one step for all of them, preemption, and their tokens out."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Literal

import numpy as np

from tilewright.errors import CacheFullError, EngineError, OptionError, TilewrightError
from tilewright.option_names import known_options
from tilewright.runtime.generation.choice import Choice
from tilewright.runtime.generation.compressing import compress, next_stop
from tilewright.runtime.generation.distribution import log_softmax
from tilewright.runtime.generation.grammar import Grammar, Matcher
from tilewright.runtime.generation.holding import Holding, chain_root
from tilewright.runtime.generation.pages import PageBook
from tilewright.runtime.generation.prompts import checked_prompt, checked_source
from tilewright.runtime.generation.request import Conversation, Finish, Handle, Request
from tilewright.runtime.generation.sampler import GREEDY, Sampler
from tilewright.runtime.generation.speculation import Drafting, verify
from tilewright.runtime.generation.step import Float32, StepProgram
from tilewright.runtime.generation.step_inputs import Segment, step_inputs


class Engine:
    """Continuous batching. A step takes one token of every decoding request, then chunks of prompts, then guesses.

    max_batch: most requests at a time. budget: bytes of cache, default all. end: ids that end an answer. drafting:
    PromptLookup or DraftModel for all requests. matcher: follows grammars. Who iterates a handle drives the engine;
    several threads and tasks may. A request's tokens do not depend on the others, nor on being preempted: it is then
    computed again from its tokens, and its random numbers hang on positions. Raises EngineError.
    """

    def __init__(
        self,
        program: StepProgram,
        *,
        max_batch: int | None = None,
        budget: int | None = None,
        end: Iterable[int] = (),
        drafting: Drafting | None = None,
        matcher: Callable[[Grammar], Matcher] | None = None,
    ) -> None:
        layout = program.layout
        rows = layout.state_rows if layout.has_rows else layout.step_requests
        self.max_batch = min(layout.step_requests, rows) if max_batch is None else max_batch
        if not 1 <= self.max_batch <= min(layout.step_requests, rows):
            raise EngineError(
                f"max_batch={max_batch}, the program takes 1 to {min(layout.step_requests, rows)} requests",
                step=f"write max_batch={min(layout.step_requests, rows)}, or compile for more",
            )
        if drafting is not None and not layout.rewinds:
            raise EngineError("guesses cannot be taken out of recurrent states", step="leave the drafter out")
        self.program, self.layout = program, layout
        self.book = PageBook(program, budget)
        self.end = frozenset(end)
        self._drafting, self._matcher = drafting, matcher
        self._running: list[Request] = []
        self._waiting: list[Request] = []
        self._idle: list[Conversation] = []
        self._handles: dict[Request, Handle] = {}
        self._arrivals = 0
        self._stepping = False
        self._cancelled: list[Handle] = []
        self.turn = threading.RLock()

    @property
    def live(self) -> int:
        """Requests that run or wait."""
        return len(self._handles)

    @known_options(within={"sampler": Sampler})
    def submit(
        self,
        ids: Sequence[int],
        *,
        max_new_tokens: int | None = None,
        sampler: Sampler | None = None,
        priority: int = 0,
        when_full: Literal["wait", "error"] = "wait",
        salt: str = "",
        key: int = 0,
        source: Sequence[int] = (),
        end: Iterable[int] | None = None,
        logprobs: int | None = None,
        conversation: Conversation | None = None,
    ) -> Handle:
        """A new request. Greedy without a sampler; `max_new_tokens` defaults to what the model and the cache hold.

        priority: higher goes first. when_full: wait for room, or raise CacheFullError; a request that the whole cache
        does not hold is refused in either case. salt: only requests with the same one share pages. key: tells requests
        with one seed apart. source: the encoder's ids. logprobs: how many likeliest tokens to tell with each.
        """
        if when_full not in ("wait", "error"):
            raise OptionError(f"when_full={when_full!r} is not one of 'wait', 'error'", step="write when_full='wait'")
        source = checked_source(source, self.layout)
        tokens = checked_prompt(ids, self.layout, max_new_tokens)
        longest = self.book.longest()
        wanted = self.layout.max_tokens if max_new_tokens is None else len(tokens) + max_new_tokens
        # the last token is given out and never read
        most = min(wanted, longest + 1) if max_new_tokens is None else wanted
        if most - 1 > longest or len(tokens) > longest:
            raise CacheFullError(
                f"{most - 1} tokens take {self.layout.bytes_for(most - 1)} B, the cache has {self.book.budget} B",
                step=f"ask for {max(0, longest + 1 - len(tokens))} new tokens, or give the cache a larger budget",
            )
        sampler = sampler or GREEDY
        drafter = self._drafting.drafter() if self._drafting else None
        choice = Choice(
            sampler,
            tokens,
            self.layout.vocabulary,
            key=key,
            matcher=self._matcher_for(sampler),
            race=self._drafting is not None and self._drafting.races,
        )
        with self.turn:
            rank = (-priority, self._arrivals)
            request = Request(
                tokens,
                len(tokens),
                most,
                choice,
                chain_root(salt, source),
                rank,
                self.end if end is None else frozenset(end),
                source,
                logprobs,
                drafter,
                conversation,
            )
            self._handles[request] = handle = Handle(self, request)
            self._enqueue(request)
            if when_full == "error" and (self._waiting[0] is not request or not self._admit_one(request)):
                self._end(request, "cancelled")
                raise CacheFullError(
                    f"{self.book.held_bytes} of {self.book.budget} B are held by {len(self._running)} requests",
                    step="try again later, or submit it with when_full='wait'",
                )
            self._arrivals += 1
            return handle

    def cancel(self, handle: Handle) -> None:
        """Ends a request; nothing happens if it has ended. Its pages are given back before this returns.

        Called from within a step (by a logits_processor, or where Python collects a stream nobody reads), it takes
        effect when the step is over.
        """
        with self.turn:
            if self._stepping:
                self._cancelled.append(handle)
            elif handle._request in self._handles:
                self._end(handle._request, "cancelled")

    def close(self) -> None:
        """Cancels all requests and forgets what conversations hold."""
        with self.turn:
            for handle in list(self._handles.values()):
                self.cancel(handle)
            while self._idle:
                self._forget_oldest()

    def forget(self, conversation: Conversation) -> None:
        """A conversation is over: its pages are given back."""
        with self.turn:
            if conversation in self._idle:
                self._idle.remove(conversation)
            if conversation.holding is not None:
                conversation.holding.release()
                conversation.holding = None

    def step_for(self, handle: Handle) -> None:
        """One step, unless another thread's step has already brought what this handle waits for."""
        with self.turn:
            if not handle._events and handle.finish is None and not self.step():
                raise EngineError("no request can go on", step="report this: pages are held by nobody who runs")

    def step(self) -> bool:
        """Admits, runs one step and gives out its tokens. False where there was nothing to do."""
        with self.turn:
            if self._stepping:
                raise EngineError("a step was asked for within a step", step="let callbacks return first")
            self._stepping = True
            try:
                return self._step()
            finally:
                self._stepping = False
                while self._cancelled:
                    self.cancel(self._cancelled.pop())

    def _step(self) -> bool:
        while self._waiting and self._admit_one(self._waiting[0]):
            pass
        plan = self._plan()
        if not plan:
            return False
        segments = []
        for request, count in plan.items():
            holding = _held(request)
            whole = count == request.pending
            new = [*request.tokens[holding.length : holding.length + count], *request.draft]
            segments.append(Segment(holding, new, 1 + len(request.draft) if whole else 0))
        logits = self.program.step(step_inputs(self.layout, segments))
        row = 0
        for (request, count), segment in zip(plan.items(), segments, strict=True):
            known = segment.holding.length + count
            self._give_out(request, known, logits[row : row + segment.wanted])
            row += segment.wanted
        for request in plan:
            # one that ends or was preempted for another has nothing to give up
            if request in self._running and _held(request).length == self._stop(request):
                compress(self.program, _held(request), request.prompt, partial(self._makes_room, request))
        return True

    def _stop(self, request: Request) -> int | None:
        """The length at which a running request gives up tokens next."""
        return next_stop(self.layout.compression, _held(request), request.prompt)

    # --- who runs ---------------------------------------------------------------------------------------------------

    def _enqueue(self, request: Request) -> None:
        self._waiting.append(request)
        self._waiting.sort(key=lambda waiting: waiting.rank)

    def _admit_one(self, request: Request) -> bool:
        """Lets the first waiting request run if there is room for all the tokens that it has."""
        while len(self._running) >= self.max_batch:
            if not self._gives_way(request):
                return False
        holding, reused = self._adopt(request)
        # behind a window, pages come and go: never more than these at one time, those already found included
        most = [self.layout.pages_for(g, len(request.tokens)) - len(held) for g, held in enumerate(holding.pages)]
        counts = [
            min(count, max(0, limit)) for count, limit in zip(holding.wanted(len(request.tokens)), most, strict=True)
        ]
        row = self.layout.has_rows and holding.row is None
        while not self.book.room_for(counts, row):
            if self._idle:
                self._forget_oldest()
            elif not self._gives_way(request):
                # a conversation's pages go on serving whoever has the same prefix
                self.book.account.reused -= reused
                holding.release()
                return False
        if row:
            holding.row = self.book.take_row()
            assert holding.row is not None
            self.program.reset(holding.row)
            if request.source:
                self.program.encode(holding.row, np.asarray(request.source, np.int32))
        request.holding = holding
        self._handles[request].reused = reused
        self._waiting.remove(request)
        self._running.append(request)
        return True

    def _adopt(self, request: Request) -> tuple[Holding, int]:
        """The pages that a request begins with: its conversation's, or those of a published prefix."""
        talk = request.conversation
        if talk is not None and talk.holding is not None:
            if talk in self._idle:
                self._idle.remove(talk)
            holding, talk.holding = talk.holding, None
            pairs = zip(talk.tokens[: holding.length], request.tokens[:-1], strict=False)
            common = next((i for i, (a, b) in enumerate(pairs) if a != b), min(holding.length, len(request.tokens) - 1))
            if holding.root == request.root:
                holding.rewind(common)
            if holding.length and holding.root == request.root:
                self.book.account.reused += holding.length
                return holding, holding.length
            holding.release()
        holding = Holding(self.book, request.root)
        # what is given up after the prompt is so again where the request was preempted
        compressed = self.layout.compression is not None
        return holding, holding.match(request.tokens[: request.prompt] if compressed else request.tokens)

    def _gives_way(self, request: Request) -> bool:
        """Preempts the last running request for one of higher priority; False where there is none."""
        last = max(self._running, key=lambda running: running.rank, default=None)
        if last is None or last.rank[0] <= request.rank[0]:
            return False
        self._preempt(last)
        return True

    def _forget_oldest(self) -> None:
        self.forget(self._idle[0])

    def _preempt(self, request: Request) -> None:
        """Takes a request's pages; it waits in its place and will be computed again from its tokens."""
        _held(request).release()
        request.holding = None
        request.draft = []
        self._running.remove(request)
        self._enqueue(request)
        self.book.account.preempted += 1

    def _secure(self, request: Request, length: int, plan: dict[Request, int]) -> bool:
        """Room for a request's tokens up to `length`: from conversations that rest, then from whoever ranks last."""
        while not _held(request).reserve(length):
            if not self._makes_room(request, plan):
                return False
        return True

    def _makes_room(self, request: Request, plan: dict[Request, int] | None = None) -> bool:
        """Gives back pages of a conversation or of the last in rank; False where that was the request itself."""
        if self._idle:
            self._forget_oldest()
            return True
        last = max(self._running, key=lambda running: running.rank)
        self._preempt(last)
        if plan is not None:
            plan.pop(last, None)
        return last is not request

    def _plan(self) -> dict[Request, int]:
        """Which requests compute how many of their pending tokens in this step; places are reserved."""
        plan: dict[Request, int] = {}
        for request in sorted(self._running, key=lambda running: (running.pending > 1, running.rank)):
            left = self.layout.step_tokens - sum(plan.values())
            if request not in self._running or not left:
                continue
            count, stop = min(request.pending, left), self._stop(request)
            if stop is not None:
                count = min(count, stop - _held(request).length)
            if self._secure(request, _held(request).length + count, plan):
                plan[request] = count
        left = self.layout.step_tokens - sum(plan.values())
        for request, count in plan.items():
            request.draft = []
            most, stop = min(left, request.most - len(request.tokens) - 1), self._stop(request)
            if stop is not None:
                most = min(most, stop - _held(request).length - count)
            if request.drafter is not None and count == request.pending and most > 0:
                guesses = request.drafter.propose(request.tokens, most, request.choice)
                if guesses and _held(request).reserve(len(request.tokens) + len(guesses)):
                    request.draft = guesses
                    left -= len(guesses)
        return plan

    # --- what comes out ---------------------------------------------------------------------------------------------

    def _give_out(self, request: Request, known: int, rows: Float32) -> None:
        """A request's new tokens; `known` of its tokens are in the cache now, and as many guesses as hold."""
        holding, draft = _held(request), request.draft
        request.draft = []
        if not len(rows):
            holding.commit(request.tokens, known)
            return
        finish: Finish | None = None
        try:
            for i, token in enumerate(verify(request.choice, rows, draft)):
                request.tokens.append(token)
                self._handles[request]._put(token, *_logprobs(rows[i], token, request.logprobs))
                if token in request.end or request.choice.complete:
                    finish = "stop"
                elif len(request.tokens) >= request.most:
                    finish = "length"
                if finish:
                    break
        except TilewrightError as error:
            # one request's sampler or grammar is not the others' affair: its own reader gets the error
            self._handles[request].error = error
            finish = "error"
        # all but the last token have been read; a first token that failed leaves what was known
        holding.commit(request.tokens, max(known, min(len(request.tokens) - 1, known + len(draft))))
        if finish:
            self._end(request, finish)

    def _end(self, request: Request, finish: Finish) -> None:
        if request in self._running:
            self._running.remove(request)
        else:
            self._waiting.remove(request)
        talk, holding, request.holding = request.conversation, request.holding, None
        lasts = holding is not None and not holding.is_compressed and finish != "error"
        # the next turn gives up tokens of its whole prompt, not of what an earlier one has left
        if lasts and holding is not None and talk is not None and talk.holding is None:
            holding.rewind(min(holding.length, len(request.tokens)))
            talk.holding, talk.tokens = holding, list(request.tokens)
            self._idle.append(talk)
        elif holding is not None:
            holding.release()
        if request.drafter is not None:
            request.drafter.release()
        self._handles.pop(request).finish = finish

    def _matcher_for(self, sampler: Sampler) -> Matcher | None:
        if sampler.grammar is None:
            return None
        if self._matcher is None:
            raise EngineError("this engine has no tokenizer to follow a grammar with", step="use lm.engine()")
        return self._matcher(sampler.grammar)


def _held(request: Request) -> Holding:
    assert request.holding is not None
    return request.holding


def _logprobs(row: Float32, token: int, count: int | None) -> tuple[float | None, tuple[tuple[int, float], ...]]:
    """A token's log-probability in the model, and the `count` likeliest tokens with theirs."""
    if count is None:
        return None, ()
    logs = log_softmax(row)
    top = np.argsort(-logs, kind="stable")[:count]
    return float(logs[token]), tuple((int(i), float(logs[i])) for i in top)
