"""How large a model's logits were in calibration, and compile()'s option that goes by it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path

from tilewright.errors import OptionError
from tilewright.option_names import known_options


@known_options()
@dataclass(frozen=True)
class AttentionBounds:
    """Of every attention of a model, in the order of its graph, and every query head: the largest scale |q| |k| of a
    query and a key of one call (`norms`), and the largest magnitude of a logit (`logits`), which is not above it."""

    norms: tuple[tuple[float, ...], ...]
    logits: tuple[tuple[float, ...], ...]
    calls: int

    def save(self, path: str | Path) -> None:
        """Writes the figures as JSON."""
        Path(path).write_text(json.dumps(asdict(self)))

    @staticmethod
    def load(path: str | Path) -> AttentionBounds:
        """Figures that `save` wrote. OptionError where the file holds no such."""
        try:
            data = json.loads(Path(path).read_text())
            norms, logits = (tuple(tuple(float(x) for x in row) for row in data[key]) for key in ("norms", "logits"))
            return AttentionBounds(norms, logits, int(data["calls"]))
        except (ValueError, KeyError, TypeError) as fault:
            raise OptionError(f"{path} holds no bounds of attention: {fault}", step="save bounds there") from fault


@known_options()
@dataclass(frozen=True)
class ApproximateAttention:
    """compile()'s `attention`: heads whose logits were small in calibration attend by a polynomial of degree 2.

    eps: the largest error of an element of an attention's result against exact attention of the same q, k and v, in
    largest magnitudes of v. bounds: from `tw.calibrate_attention`. crossover: keys from which on to approximate; 0: as
    predicted for the machine.
    """

    eps: float
    bounds: AttentionBounds
    crossover: int = 0

    def __post_init__(self) -> None:
        faults = []
        if not (isinstance(self.eps, (int, float)) and self.eps > 0 and isfinite(self.eps)):
            faults.append(f"eps={self.eps!r} is not a number above 0")
        if not isinstance(self.bounds, AttentionBounds):
            faults.append(f"bounds is a {type(self.bounds).__name__}, not what tw.calibrate_attention gives")
        if not isinstance(self.crossover, int) or self.crossover < 0:
            faults.append(f"crossover={self.crossover!r} is not a number of keys")
        if faults:
            raise OptionError(
                faults, step="write attention=tw.ApproximateAttention(0.01, tw.calibrate_attention(model, calls))"
            )
