"""tw.Compression: what a request gives up of its keys and values, and when, as one frozen value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from tilewright.errors import OptionError
from tilewright.option_names import known_options

# What is left of a request's tokens: by the name of a state, rows in the order of their places.
Compressed: TypeAlias = Mapping[str, NDArray[Any]]

_SCORERS = ("attention", "recent")


@known_options()
@dataclass(frozen=True, kw_only=True)
class Compression:
    """Which tokens' keys and values stay once a prompt has been read. Raises OptionError for options out of range.

    budget: tokens that a layer keeps of a prompt, or their share of it as a float up to 1.0. The first `sinks` and the
    last `recent` always stay (Xiao et al., StreamingLLM, 2023); every key head of every layer fills the rest with what
    scores highest, the earlier one of equals. every: after so many more tokens it is brought to the budget again; None
    only once, so that an answer's own tokens all stay.

    scorer: "attention", the mass that the last `recent` queries give a key, smoothed over its neighbours (Li et al.,
    SnapKV, 2024); "recent", the latest; or a torch.nn.Module: queries [recent, heads, features], keys [n, key heads,
    features], values [n, key heads, value features] and log_counts [n, key heads] to scores f32 [key heads, n]. Keys
    and queries are as attention multiplies them; the n places rise, and the queries are those of the last ones.

    merge: what is given up is merged into the kept key after the sinks that is most like it, if their cosine is at
    least this: values are averaged, and the key counts for all of them (log m is added to its logit, so that equal keys
    weigh what they weighed; Bolya et al., ToMe, 2023). None drops it.
    """

    budget: int | float = 0.5
    scorer: Any = "attention"
    sinks: int = 4
    recent: int = 32
    merge: float | None = None
    every: int | None = None

    def __post_init__(self) -> None:
        faults = [f"{name}={getattr(self, name)!r} is not a number of tokens" for name in self._not_counts()]
        least = 0 if faults else self.sinks + self.recent
        if isinstance(self.budget, float):
            if not 0 < self.budget <= 1:
                faults.append(f"budget={self.budget!r} is not a share of the prompt above 0 and up to 1.0")
        elif isinstance(self.budget, bool) or not isinstance(self.budget, int) or self.budget < least:
            faults.append(f"budget={self.budget!r} is not a number of tokens from sinks + recent = {least} on")
        if isinstance(self.scorer, str) and self.scorer not in _SCORERS:
            faults.append(f"scorer={self.scorer!r} is not one of 'attention', 'recent', and no torch.nn.Module")
        elif not isinstance(self.scorer, str) and not callable(getattr(self.scorer, "forward", None)):
            faults.append(f"scorer is a {type(self.scorer).__name__}, not a torch.nn.Module")
        if self.merge is not None and not (isinstance(self.merge, (int, float)) and -1 <= self.merge <= 1):
            faults.append(f"merge={self.merge!r} is not a cosine from -1 to 1")
        if faults:
            raise OptionError(faults, step="tw.Compression(budget=0.25, scorer='attention') is one that works")

    def _not_counts(self) -> list[str]:
        least = {"sinks": 0, "recent": 1} | ({} if self.every is None else {"every": 1})
        return [
            name
            for name, low in least.items()
            if isinstance(getattr(self, name), bool)
            or not isinstance(getattr(self, name), int)
            or getattr(self, name) < low
        ]

    @property
    def observes(self) -> bool:
        """Whether the last queries are kept for the scorer."""
        return not isinstance(self.scorer, str) or self.scorer != "recent"

    def kept(self, prompt: int) -> int:
        """How many tokens stay of a request whose prompt has so many."""
        asked = int(self.budget * prompt) if isinstance(self.budget, float) else self.budget
        return max(asked, self.sinks + self.recent)

    def next_stop(self, prompt: int, done: int) -> int | None:
        """At which length tokens are given up next; None never again. done: where that was last looked at, 0 before.

        It hangs on the prompt's length alone, so that a request that is computed again gives up the same.
        """
        if done < prompt:
            return prompt
        return None if self.every is None else done + self.every

    def chosen(self, scores: NDArray[np.float32] | None, heads: int, tokens: int, count: int) -> NDArray[np.int64]:
        """Which `count` of `tokens` places stay: [heads, count], rising. scores [heads, tokens]; None: the latest."""
        kept = np.empty((heads, count), np.int64)
        middle, free = tokens - self.sinks - self.recent, count - self.sinks - self.recent
        kept[:, : self.sinks] = np.arange(self.sinks)
        kept[:, self.sinks + free :] = np.arange(tokens - self.recent, tokens)
        best = np.arange(middle - free, middle)
        if scores is not None:
            order = np.argsort(-scores[:, self.sinks : self.sinks + middle], axis=1, kind="stable")
            best = np.sort(order[:, :free], axis=1)
        kept[:, self.sinks : self.sinks + free] = best + self.sinks
        return kept
