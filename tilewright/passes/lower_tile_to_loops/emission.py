"""The loop builder that this lowering uses: it also remembers results by key, in the block where they were computed."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager

from tilewright.ir.dtypes import DType
from tilewright.ir.loops import Block, BranchScope, Const, LoopBuilder, Op, Value


class Emission(LoopBuilder):
    """A LoopBuilder with a memory that follows the blocks: what was computed in an enclosing block is found again."""

    def __init__(self, name: str) -> None:
        self._memory: list[dict[Hashable, Value]] = [{}]
        self._wider: dict[Value, Value] = {}
        super().__init__(name)

    def once(self, key: Hashable, compute: Callable[[], Value]) -> Value:
        """The value computed under this key in this block or one around it, else computed now."""
        for known in reversed(self._memory):
            found = known.get(key)
            if found is not None:
                return found
        made = compute()
        self._memory[-1][key] = made
        return made

    def narrowed(self, value: Value, dtype: DType) -> Value:
        """A cast that loses nothing, because the value fits: `widened` then starts from the value itself."""
        made = self.cast(value, dtype)
        self._wider[made] = value
        return made

    def widened(self, value: Value, dtype: DType, *, normal: bool = False, flush: bool = False) -> Value:
        """A cast, from what the value was before it was narrowed. normal, flush: see `Cast`."""
        return self.cast(self._wider.get(value, value), dtype, normal=normal, flush=flush)

    def open_ops(self) -> list[Op]:
        """The ops of the open block so far, for whoever rewrites what was just added."""
        return self._scopes[-1][0].ops

    @contextmanager
    def either(self, condition: Value | None) -> Iterator[Sides]:
        """Both sides of a branch for effects: `with b.either(p) as sides: with sides.then(): ...`; None: the first."""
        yield Sides(self, condition)

    def _open(self, block: Block) -> None:
        super()._open(block)
        self._memory.append({})

    def _close(self) -> None:
        super()._close()
        self._memory.pop()


class Sides:
    """The two sides of an effect-only branch; a condition that is known opens no block."""

    def __init__(self, builder: Emission, condition: Value | None) -> None:
        self._taken: bool | None = True if condition is None else None
        if isinstance(condition, Const):
            self._taken = bool(condition.value)
        self._scope: BranchScope | None = None
        if self._taken is None and condition is not None:
            self._scope = builder.branch(condition)

    @contextmanager
    def then(self) -> Iterator[bool]:
        """The first side; gives False where it never runs, and then nothing must be emitted."""
        if self._scope is None:
            yield bool(self._taken)
            return
        with self._scope.then():
            yield True

    @contextmanager
    def otherwise(self) -> Iterator[bool]:
        """The second side, alike."""
        if self._scope is None:
            yield not self._taken
            return
        with self._scope.otherwise():
            yield True
