"""Forms of attention with every mask and operand there is, their kernels compiled once for all sizes, and what their
results may differ by from float64."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import sqrt
from typing import Any

import numpy as np
import torch

from tests.backends.cpu.native_kernel import NativeKernel, host_classes
from tests.passes.lower_to_tile.attention_bounds import UNIT, check_bounds
from tests.passes.lower_to_tile.groups import group, reference
from tilewright.backends.cpu.machines import MACHINES
from tilewright.ir.dims import Dim, DimSpace, product
from tilewright.ir.dtypes import BF16, DTYPES, F32, I1, I64, torch_name
from tilewright.ir.graph.attention import AttentionOp
from tilewright.ir.graph.base import tensor
from tilewright.ir.graph.structure import GroupOp
from tilewright.ir.passing import Context
from tilewright.ir.tile.base import buffer
from tilewright.ir.types import TensorType
from tilewright.passes.lower_tile_to_loops import lower_kernel
from tilewright.passes.lower_to_tile.frame import Lowered
from tilewright.passes.lower_to_tile.skeletons import lower_group

SPACE = DimSpace([Dim("b", 0, 8), Dim("t", 0, 4096), Dim("s", 0, 4096)])
BEST = host_classes()[-1]

Array = np.ndarray[Any, Any]
Sizes = Mapping[str, int]


@dataclass(frozen=True)
class Form:
    """What of an attention decides its kernel.

    heads, groups: of queries and of keys. size, value_size: features. square: as many keys as queries. valid: "keys",
    "pairs", or "streaming" (the first keys and a window). bias: "heads" (one row a head, as ALiBi adds), "pairs".
    prefix: keys of a prefix stand at position 0, so that a causal mask lets all see them.
    """

    dtype: str = "f32"
    heads: int = 2
    groups: int = 1
    size: int = 16
    value_size: int = 16
    scale: float = 0.25
    square: bool = True
    mask: str = "none"
    window: int = 0
    softcap: float = 0.0
    valid: str = ""
    bias: str = ""
    sinks: bool = False
    prefix: bool = False
    segments: bool = False

    @property
    def keys(self) -> str:
        return "t" if self.square else "s"

    @property
    def types(self) -> dict[str, TensorType]:
        """Of the operands that the form has, by name."""
        kind, keys = DTYPES[self.dtype], self.keys
        shapes: dict[str, tuple[tuple[int | str, ...], Any]] = {
            "q": (("b", self.heads, "t", self.size), kind),
            "k": (("b", self.groups, keys, self.size), kind),
            "v": (("b", self.groups, keys, self.value_size), kind),
        }
        if self.bias:
            shapes["bias"] = ((1, self.heads, 1, keys) if self.bias == "heads" else ("b", 1, "t", keys), F32)
        if self.valid:
            shapes["valid"] = (("b", keys) if self.valid == "keys" else ("b", 1, "t", keys), I1)
        if self.prefix:
            shapes["q_positions"], shapes["k_positions"] = (("t",), I64), (("b", keys), I64)
        if self.sinks:
            shapes["sinks"] = ((self.heads,), F32)
        if self.segments:
            shapes["segments"] = (("b", "t"), I64)
        return {name: TensorType.of(dims, dtype) for name, (dims, dtype) in shapes.items()}

    def group(self) -> GroupOp:
        """The attention alone in its group, with its log-sum-exp."""
        types = self.types
        slots = ("q", "k", "v", "bias", "valid", "q_positions", "k_positions", "sinks", "segments")

        def build(g: Any, *args: Any) -> list[Any]:
            named = dict(zip(types, args, strict=True))
            op = AttentionOp.make(
                *(named.get(slot) for slot in slots), scale=self.scale, mask=self.mask, window=self.window,
                softcap=self.softcap, lse=True,
            )  # fmt: skip
            g.add(op)
            return [op.out, op.lse_out]

        return group("attention", list(types.values()), build)

    def draw(self, sizes: Sizes, magnitude: float, rng: np.random.Generator) -> dict[str, torch.Tensor]:
        """Operands by name. magnitude: about what the largest logits are."""
        found: dict[str, torch.Tensor] = {}
        for name, kind in self.types.items():
            shape = [d.evaluate(sizes) for d in kind.dims]
            found[name] = self._drawn(name, shape, magnitude, sizes, rng).to(getattr(torch, torch_name(kind.dtype)))
        return found

    def _drawn(
        self, name: str, shape: list[int], magnitude: float, sizes: Sizes, rng: np.random.Generator
    ) -> torch.Tensor:
        queries, keys = sizes["t"], sizes[self.keys]
        match name:
            case "q":
                return torch.from_numpy(rng.standard_normal(shape)) * magnitude / (3 * self.scale * sqrt(self.size))
            case "bias":
                made = rng.standard_normal(shape) * rng.choice([1.0, magnitude])
                made[rng.random(shape) < 0.2] = -np.inf
                return torch.from_numpy(made)
            case "valid" if self.valid == "streaming":
                apart = np.arange(queries)[:, None] + keys - queries - np.arange(keys)
                seen = (apart >= 0) & ((apart < 20) | (np.arange(keys) < 4))
                return torch.from_numpy(np.broadcast_to(seen, shape).copy())
            case "valid":
                return torch.from_numpy(rng.random(shape) < rng.choice([0.0, 0.5, 0.9]))
            case "q_positions":
                return torch.arange(queries)
            case "k_positions":
                own = rng.integers(0, keys + 1, (shape[0], 1))
                return torch.from_numpy(np.where(np.arange(keys) < own, 0, np.arange(keys)))
            case "segments":
                return torch.from_numpy(np.sort(rng.integers(0, 4, shape), -1))
            case _:
                return torch.from_numpy(rng.standard_normal(shape))


class Kernels:
    """A group's variants, each compiled for the host's best class when sizes first choose it."""

    def __init__(self, made: GroupOp, space: DimSpace = SPACE) -> None:
        self.made = made
        self.lowered = lower_group(made, "kernel", Context(MACHINES[BEST](), space))
        self.compiled: dict[str, NativeKernel] = {}

    def __call__(self, given: Sequence[torch.Tensor], sizes: Sizes, threads: int) -> list[torch.Tensor]:
        """The group's results as the program's own variant computes them; NaN where nothing is written."""
        flat = [_array(x).reshape(-1) for x in given]
        outs = self._launched(self.lowered, flat, sizes, threads)
        dims = [[d.evaluate(dict(sizes)) for d in tensor(v).dims] for v in self.made.yielded]
        return [torch.from_numpy(o.astype(np.float64).reshape(d)) for o, d in zip(outs, dims, strict=True)]

    def _launched(self, lowered: Lowered, given: list[Array], sizes: Sizes, threads: int) -> list[Array]:
        """The results of a group's last launch, after those before it."""
        before = [] if lowered.first is None else self._launched(lowered.first, given, sizes, threads)
        chosen = lowered.guard.evaluate(dict(sizes))
        kernel = next(v.kernel for v in lowered.variants if v.limit is None or chosen <= v.limit)
        name = kernel.sym_name.data
        if name not in self.compiled:
            self.compiled[name] = NativeKernel(lower_kernel(kernel, MACHINES[BEST]()), BEST)
        outs = []
        for value in kernel.buffers[len(kernel.inputs) :]:
            kind = buffer(value)
            empty = np.nan if kind.dtype.is_float else -1
            outs.append(np.full([product(kind.dims).evaluate(dict(sizes))], empty).astype(kind.dtype.numpy()))
        self.compiled[name]([*given, *before, *outs], [sizes[n] for n in lowered.dims], nthreads=threads)
        return outs


@lru_cache(None)
def kernels(form: Form) -> Kernels:
    return Kernels(form.group())


def _array(x: torch.Tensor) -> Array:
    if x.dtype == torch.bfloat16:
        return np.ascontiguousarray(x.float().numpy().astype(BF16.numpy()))
    return np.ascontiguousarray(x.numpy())


def wanted(form: Form, given: Mapping[str, torch.Tensor], sizes: Sizes) -> list[torch.Tensor]:
    """Both results in float64, by the op's own reference."""
    return reference(kernels(form).made, list(given.values()), sizes)


def seen_by(form: Form, given: Mapping[str, torch.Tensor], sizes: Sizes) -> torch.Tensor:
    """Which query may see which key, [b, heads, t, keys]: by the mask, and where no bias is minus infinity."""
    op = next(o for o in kernels(form).made.block.ops if isinstance(o, AttentionOp))
    shape = (sizes["b"], form.heads, sizes["t"], sizes[form.keys])
    names = ("valid", "q_positions", "k_positions", "segments")
    seen = op.visible(shape, *(given.get(name) for name in names))
    return seen if "bias" not in given else seen & (given["bias"] > -torch.inf)


def logits_of(form: Form, given: Mapping[str, torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
    """Scaled, capped and biased logits in a dtype, masks left out."""
    q, k = given["q"].to(dtype), given["k"].to(dtype).repeat_interleave(form.heads // form.groups, 1)
    logits = q @ k.mT * form.scale
    if form.softcap:
        logits = form.softcap * (logits / form.softcap).tanh()
    return logits + given["bias"].to(dtype) if "bias" in given else logits


def torchs(form: Form, given: Mapping[str, torch.Tensor], sizes: Sizes) -> torch.Tensor:
    """What torch computes in the form's dtype: its own kernel where that can, else the formula."""
    seen, dtype = seen_by(form, given, sizes), given["q"].dtype
    if not form.softcap and not form.sinks:
        fill = given["bias"].to(dtype) if "bias" in given else torch.zeros((), dtype=dtype)
        mask = fill.expand(seen.shape).masked_fill(~seen, -torch.inf)
        return torch.nn.functional.scaled_dot_product_attention(
            given["q"], given["k"], given["v"], mask, scale=form.scale, enable_gqa=True
        ).double()
    logits = logits_of(form, given, dtype).masked_fill(~seen, -torch.inf)
    if form.sinks:
        column = given["sinks"].to(dtype)[:, None, None].expand(*logits.shape[:-1], 1)
        weights = torch.cat([logits, column], -1).softmax(-1)[..., :-1]
    else:
        weights = logits.softmax(-1)
    return (weights @ given["v"].repeat_interleave(form.heads // form.groups, 1)).double()


def magnitude_of(form: Form, given: Mapping[str, torch.Tensor], seen: torch.Tensor) -> float:
    """L: the largest sum of magnitudes behind a logit that counts, a bias included; 1 at least."""
    q, k = given["q"].double().abs(), given["k"].double().abs().repeat_interleave(form.heads // form.groups, 1)
    sums = q @ k.mT * form.scale
    if "bias" in given:
        sums = sums + given["bias"].double().abs()
    return max(1.0, float(sums.masked_fill(~seen, 0).max())) if sums.numel() else 1.0


def check(form: Form, sizes: Sizes, magnitude: float, rng: np.random.Generator) -> bool:
    """Native results against float64 within `check_bounds`, which gives the result."""
    given = form.draw(sizes, magnitude, rng)
    out, lse = kernels(form)(list(given.values()), sizes, int(rng.integers(1, 3)))
    want, want_lse = wanted(form, given, sizes)
    seen = seen_by(form, given, sizes)
    empty = ~seen.any(-1)
    assert not out.isnan().any()
    assert not out[empty].any(), "a row that sees no key is 0"
    keys, large = sizes[form.keys], magnitude_of(form, given, seen)
    if not form.sinks:
        assert (lse[empty] == -torch.inf).all()
    finite = want_lse > -torch.inf
    assert torch.equal(lse > -torch.inf, finite)
    apart = (lse - want_lse)[finite].abs().max() if finite.any() else 0.0
    # 16-bit weights are known to 13 bits
    coarse = 0.0 if form.dtype == "f32" else 2.0**-13
    assert float(apart) <= (4 * large + 2 * sqrt(max(1, keys))) * UNIT["f32"] + coarse
    if empty.all():
        return True

    def own(order: torch.Tensor) -> float:
        turned = {name: x[..., order].contiguous() if name in "qk" else x for name, x in given.items()}
        return float((torchs(form, turned, sizes) - want)[~empty].abs().max())

    most = float(given["v"].double().abs().max())
    return check_bounds(
        f"{form} {dict(sizes)}", float((out - want).abs().max()), dtype=form.dtype, large=large, keys=keys, most=most,
        size=form.size, own=own, rng=rng,
    )  # fmt: skip
