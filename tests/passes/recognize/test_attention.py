"""Attention written out becomes graph.attention with scale, heads, cap, bias and masks bound; near misses are told."""

from __future__ import annotations

import math

import pytest
import torch
from xdsl.ir import SSAValue

from tests.passes.graphs import Graph, ops_of
from tilewright.ir.graph.attention import AttentionOp
from tilewright.ir.graph.base import tensor
from tilewright.passes.canonicalize import Canonicalize
from tilewright.passes.recognize import Recognize
from tilewright.testing import context, ground, transform

MINUS = -math.inf
SIZES = {"b": 2, "t": 5, "s": 7}
SEEN = torch.tensor([[1, 1, 1, 0, 0, 1, 0], [0, 1, 0, 1, 1, 1, 1]], dtype=torch.bool)


class Case:
    """q [b, 4, t, 8] against k and v [b, heads, s, 8]; `keys="t"` makes it self attention."""

    def __init__(self, heads: int = 4, keys: str = "s") -> None:
        self.g = Graph("b: 0..4", "t: 1..6", "s: 1..9", dtype="f64")
        self.keys, self.heads = keys, heads
        self.q = self.g.input("q", ["b", 4, "t", 8])
        self.k, self.v = (self.g.input(n, ["b", heads, keys, 8]) for n in "kv")
        self.g.sized("s")
        self.inputs: dict[str, torch.Tensor] = {}

    def repeated(self, x: SSAValue) -> SSAValue:
        """As repeat_kv in transformers."""
        group = 4 // self.heads
        wide = self.g.broadcast(
            self.g.reshape(x, "b", self.heads, 1, self.keys, 8), "b", self.heads, group, self.keys, 8
        )
        return self.g.reshape(wide, "b", 4, self.keys, 8)

    def product(self, q: SSAValue | None = None, k: SSAValue | None = None) -> SSAValue:
        return self.g.matmul(q or self.q, self.g.transpose(k or self.k, 0, 1, 3, 2))

    def key_mask(self) -> SSAValue:
        self.inputs["seen"] = SEEN[:, : SIZES[self.keys]]
        return self.g.input("seen", ["b", self.keys], "i1")

    def causal(self, relation: str = "le", shift: int = 0) -> SSAValue:
        """[t, s]: key index `relation` query index + s - t + shift."""
        keys = self.g.reshape(self.g.iota(self.keys), 1, self.keys)
        start = shift if self.keys == "t" else f"s - t + {shift}"
        return self.g.map(relation, keys, self.g.reshape(self.g.iota("t", start), "t", 1))

    def run(self, out: SSAValue, seed: int, recognize: Recognize | None = None) -> AttentionOp:
        ctx = context(self.g.done(out))
        passes = [Canonicalize(), recognize or Recognize(), Canonicalize()]
        after = ground(self.g.module, passes, seed=seed, sizes=SIZES, inputs=self.inputs, ctx=ctx)
        self.left, self.said = ops_of(after), [r.reason for r in ctx.refused]
        self.counted = [a.what for a in ctx.applied if a.pass_name == "recognize"].count("attention")
        found = [op for op in after.walk() if isinstance(op, AttentionOp)]
        return found[0] if found else None  # type: ignore[return-value]


# --- scale, heads, cap ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["logits", "logits divided", "q", "k", "both", "nowhere"])
def test_the_scale_is_bound_wherever_it_stands(where: str, seed: int) -> None:
    c = Case()
    g, q, k = c.g, c.q, c.k
    q = g.map("mul", q, 0.3) if where in ("q", "both") else q
    k = g.map("div", k, 0.7) if where in ("k", "both") else k
    logits = c.product(q, k)
    if where.startswith("logits"):
        logits = g.map("mul", logits, 0.3) if where == "logits" else g.map("div", logits, 3.0)
    found = c.run(g.matmul(g.softmax(logits), c.v), seed)
    wanted = {"logits": 0.3, "logits divided": 1 / 3, "q": 0.3, "k": 1 / 0.7, "both": 0.3 / 0.7, "nowhere": 1.0}[where]
    assert found.scale.data == pytest.approx(wanted, rel=1e-15)
    assert (c.left, c.counted, c.said) == (["attention"], 1, [])


@pytest.mark.parametrize("heads", [1, 2])
def test_repeated_key_heads_are_not_repeated_any_more(heads: int, seed: int) -> None:
    c = Case(heads)
    found = c.run(c.g.matmul(c.g.softmax(c.product(k=c.repeated(c.k))), c.repeated(c.v)), seed)
    assert tensor(found.k).dims[1].constant == heads
    assert c.left == ["attention"]


def test_one_key_head_may_serve_all_by_broadcasting(seed: int) -> None:
    c = Case(1)
    assert c.run(c.g.matmul(c.g.softmax(c.product()), c.v), seed) is not None
    assert c.left == ["attention"]


def test_heads_repeated_in_another_order_stay_as_they_are(seed: int) -> None:
    """Tiled heads (0 1 0 1) are not repeated ones (0 0 1 1)."""
    c = Case(2)

    def tiled(x: SSAValue) -> SSAValue:
        wide = c.g.broadcast(c.g.reshape(x, "b", 1, 2, "s", 8), "b", 2, 2, "s", 8)
        return c.g.reshape(wide, "b", 4, "s", 8)

    found = c.run(c.g.matmul(c.g.softmax(c.product(k=tiled(c.k))), tiled(c.v)), seed)
    assert tensor(found.k).dims[1].constant == 4


def test_a_soft_cap_is_bound(seed: int) -> None:
    c = Case()
    g = c.g
    capped = g.map("mul", g.map("tanh", g.map("div", g.map("mul", c.product(), 0.5), 3.0)), 3.0)
    found = c.run(g.matmul(g.softmax(capped), c.v), seed)
    assert (found.scale.data, found.softcap.data) == (0.5, 3.0)


def test_attention_without_heads_gets_one(seed: int) -> None:
    g = Graph("b: 0..4", "t: 1..6", dtype="f64")
    q, k, v = (g.input(n, ["b", "t", 8]) for n in "qkv")
    bias = g.input("bias", ["b", "t", "t"])
    module = g.done(g.matmul(g.softmax(g.map("add", g.matmul(q, k, transpose_b=True), bias)), v))
    left = ops_of(ground(module, [Canonicalize(), Recognize()], seed=seed))
    assert left == ["reshape", "reshape", "reshape", "reshape", "attention", "reshape"]


def test_narrow_attention_with_a_wide_softmax(seed: int) -> None:
    g = Graph("b: 0..4", "t: 1..6", dtype="bf16")
    q, k, v = (g.input(n, ["b", 2, "t", 8]) for n in "qkv")
    weights = g.cast(g.softmax(g.cast(g.matmul(q, k, transpose_b=True), "f32")), "bf16")
    after = ground(g.done(g.matmul(weights, v)), [Canonicalize(), Recognize()], seed=seed, rounding="bf16")
    assert ops_of(after) == ["attention"]


# --- masks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keys", ["s", "t"])
@pytest.mark.parametrize("form", ["where", "where not", "added", "added times"])
def test_a_causal_comparison_is_proved(keys: str, form: str, seed: int) -> None:
    c = Case(keys=keys)
    g, logits = c.g, c.product()
    match form:
        case "where":
            logits = g.map("select", c.causal(), logits, MINUS)
        case "where not":
            logits = g.map("select", c.causal("gt"), MINUS, logits)
        case "added":
            logits = g.map("add", logits, g.map("select", c.causal(), 0.0, -1e30))
        case _:
            hidden = g.map("sub", 1.0, g.cast(c.causal(), "f64"))
            logits = g.map("add", logits, g.map("mul", hidden, -1e30))
    sizes = {"b": 2, "t": 4, "s": 6}
    ctx = context(g.done(g.matmul(g.softmax(logits), c.v)))
    after = ground(g.module, [Canonicalize(), Recognize(), Canonicalize()], seed=seed, sizes=sizes, ctx=ctx)
    (found,) = [op for op in after.walk() if isinstance(op, AttentionOp)]
    assert (found.mask.data, found.valid, found.bias) == ("causal", None, None)


@pytest.mark.parametrize("shift", [1, -1])
def test_a_shifted_comparison_is_kept_as_a_condition(shift: int, seed: int) -> None:
    c = Case(keys="t")
    mask = c.causal(shift=shift)
    if shift < 0:  # the first query must see something
        first = c.g.map("eq", c.g.reshape(c.g.iota("t"), 1, "t"), c.g.constant(0, (), "i64"))
        mask = c.g.map("or", mask, first)
    found = c.run(c.g.matmul(c.g.softmax(c.g.map("select", mask, c.product(), MINUS)), c.v), seed)
    assert found.mask.data == "none"
    assert found.valid is not None
    if shift > 0:
        assert c.said == [
            "attention: keys up to query + 1 are seen; with the ends aligned, causal is query + 0: kept as a condition"
        ]


def test_a_window_makes_it_sliding(seed: int) -> None:
    c = Case(keys="t")
    g = c.g
    keys, queries = (g.reshape(g.iota("t"), *dims) for dims in ((1, "t"), ("t", 1)))
    near = g.map("lt", g.map("sub", queries, keys), 3)
    found = c.run(g.matmul(g.softmax(g.map("select", g.map("and", near, c.causal()), c.product(), MINUS)), c.v), seed)
    assert (found.mask.data, found.window.data, found.valid) == ("sliding", 3, None)


def test_a_window_alone_is_no_sliding_mask(seed: int) -> None:
    c = Case(keys="t")
    keys, queries = (c.g.reshape(c.g.iota("t"), *dims) for dims in ((1, "t"), ("t", 1)))
    near = c.g.map("gt", keys, c.g.map("sub", queries, 3))
    found = c.run(c.g.matmul(c.g.softmax(c.g.map("select", near, c.product(), MINUS)), c.v), seed)
    assert found.mask.data == "none"
    assert found.valid is not None


def test_positions_stay_explicit(seed: int) -> None:
    c = Case(keys="t")
    g = c.g
    at = g.positions("t")
    mask = g.map("le", g.reshape(at, 1, "t"), g.reshape(at, "t", 1))
    found = c.run(g.matmul(g.softmax(g.map("select", mask, c.product(), MINUS)), c.v), seed)
    assert found.mask.data == "causal"
    assert found.q_positions is not None
    assert found.q_positions is found.k_positions


def test_a_stored_triangle_is_causal_and_another_matrix_is_not(seed: int) -> None:
    for cut in (0, 1):
        g = Graph(dtype="f64")
        q, k, v = (g.input(n, [2, 3, 8]) for n in "qkv")
        mask = g.constant([int(j <= i + cut) for i in range(3) for j in range(3)], [3, 3], "i1")
        module = g.done(g.matmul(g.softmax(g.map("select", mask, g.matmul(q, k, transpose_b=True), MINUS)), v))
        after = ground(module, [Canonicalize(), Recognize()], seed=seed)
        (found,) = [op for op in after.walk() if isinstance(op, AttentionOp)]
        assert (found.mask.data, found.valid is None) == (("causal", True) if cut == 0 else ("none", False))


@pytest.mark.parametrize("form", ["where", "added", "added cast"])
def test_a_padding_mask_is_the_keys_validity(form: str, seed: int) -> None:
    c = Case()
    g = c.g
    seen, logits = g.reshape(c.key_mask(), "b", 1, 1, "s"), c.product()
    match form:
        case "where":
            logits = g.map("select", seen, logits, MINUS)
        case "added":
            logits = g.map("add", logits, g.broadcast(g.map("select", seen, 0.0, -1e9), "b", 1, "t", "s"))
        case _:
            logits = g.map("add", logits, g.map("mul", g.map("sub", 1.0, g.cast(seen, "f64")), -1e9))
    found = c.run(g.matmul(g.softmax(logits), c.v), seed)
    assert found.valid is not None
    assert [str(d) for d in tensor(found.valid).dims] in (["b", "s"], ["b", "1", "t", "s"])
    assert found.bias is None


def test_causal_and_padding_together_are_taken_apart(seed: int) -> None:
    c = Case(keys="t")
    g = c.g
    seen = c.g.input("seen", ["b", "t"], "i1")
    c.inputs["seen"] = torch.tensor([[1, 0, 1, 1, 0], [1, 1, 1, 1, 1]], dtype=torch.bool)
    both = g.map("and", g.reshape(seen, "b", 1, 1, "t"), g.reshape(c.causal(), 1, 1, "t", "t"))
    logits = g.map("add", c.product(), g.map("select", both, 0.0, -3e38))
    found = c.run(g.matmul(g.softmax(logits), c.v), seed)
    assert found.mask.data == "causal"
    assert [str(d) for d in tensor(found.valid).dims] == ["b", "t"]  # type: ignore[arg-type]


def test_numbers_that_do_not_hide_are_a_bias(seed: int) -> None:
    c = Case()
    g = c.g
    seen = g.reshape(c.key_mask(), "b", 1, 1, "s")
    found = c.run(g.matmul(g.softmax(g.map("add", c.product(), g.map("select", seen, 0.0, -5.0))), c.v), seed)
    assert found.valid is None
    assert found.bias is not None


@pytest.mark.parametrize(
    ("dtype", "fill", "factor", "hides"),
    [
        ("f32", -1e9, 1.0, True),
        ("f32", -9.8e8, 1.0, False),
        ("f32", -1e9, 0.125, True),
        ("f32", -1e9, 1e-7, False),
        ("bf16", -998244352.0, 1.0, True),
        ("f16", -65504.0, 1.0, True),
        ("f16", -65504.0, 0.125, True),
        ("f16", -65504.0, 2.0**-10, False),
        ("f16", -65472.0, 1.0, False),
        ("f32", -65504.0, 1.0, False),
    ],
)
def test_a_fill_hides_where_no_logit_of_its_dtype_lies_below_it(
    dtype: str, fill: float, factor: float, hides: bool
) -> None:
    g = Graph("b: 0..4", "t: 1..6", dtype=dtype)
    q, k, v = (g.input(n, ["b", 4, "t", 8]) for n in "qkv")
    seen = g.reshape(g.input("seen", ["b", "t"], "i1"), "b", 1, 1, "t")
    logits = g.map("select", g.broadcast(seen, "b", 4, "t", "t"), g.matmul(q, k, transpose_b=True), fill)
    module = g.done(g.matmul(g.softmax(g.map("mul", logits, factor) if factor != 1.0 else logits), v))
    ctx = context(module)
    found = [op for op in transform(module, [Canonicalize(), Recognize()], ctx).walk() if isinstance(op, AttentionOp)]
    assert bool(found) == hides
    noted = ["rows that see no key give 0, where the model's finite fill gives an average"]
    assert [n.text for n in ctx.noted] == (noted if hides else [])
    above = f"attention: {fill:g} stands for logits that may be less; -1e9 and less hides keys"
    faint = f"attention: {fill:g} stands for logits and is multiplied by {factor:g}: its exponential does not vanish"
    reasons = {r.reason for r in ctx.refused} & {above, faint}
    assert reasons == (set() if hides else {faint if factor < 1 else above})


def test_a_finite_mask_can_be_kept_as_numbers(seed: int) -> None:
    c = Case()
    g = c.g
    seen = g.reshape(c.key_mask(), "b", 1, 1, "s")
    logits = g.map("add", c.product(), g.map("select", seen, 0.0, -1e30))
    found = c.run(g.matmul(g.softmax(logits), c.v), seed, Recognize(finite_hides=False))
    assert found.valid is None
    assert found.bias is not None


def test_a_finite_select_that_is_kept_says_why(seed: int) -> None:
    c = Case()
    seen = c.g.broadcast(c.g.reshape(c.key_mask(), "b", 1, 1, "s"), "b", 4, "t", "s")
    logits = c.g.map("select", seen, c.product(), -1e30)
    assert c.run(c.g.matmul(c.g.softmax(logits), c.v), seed, Recognize(finite_hides=False)) is None
    assert "attention: -1e+30 stands for logits, and finite numbers hide no keys with finite-hides=false" in c.said


def test_bias_and_mask_in_one_sum_are_told_apart(seed: int) -> None:
    c = Case()
    g = c.g
    seen = g.reshape(c.key_mask(), "b", 1, 1, "s")
    bias = g.map("add", g.input("alibi", [4, 1, "s"]), g.map("select", seen, 0.0, MINUS))
    found = c.run(g.matmul(g.softmax(g.map("add", c.product(), bias)), c.v), seed)
    assert found.valid is not None
    assert tensor(found.bias).rank == 3  # type: ignore[arg-type]


def test_batch_and_heads_in_one_axis_are_told_apart_again(seed: int) -> None:
    """As in Bloom: products of three axes, a bias among them, the mask among four."""
    c = Case(keys="t")
    g = c.g
    q, k, v = (g.reshape(x, "4*b", "t", 8) for x in (c.q, c.k, c.v))
    places = g.broadcast(g.reshape(g.input("alibi", [4, "t"]), 1, 4, 1, "t"), "b", 4, 1, "t")
    logits = g.map("add", g.map("mul", g.matmul(q, g.transpose(k, 0, 2, 1)), 0.3), g.reshape(places, "4*b", 1, "t"))
    hiding = g.map("select", c.causal(), 0.0, -3e38)
    weights = g.softmax(g.map("add", g.reshape(logits, "b", 4, "t", "t"), hiding))
    found = c.run(g.matmul(g.reshape(weights, "4*b", "t", "t"), v), seed)
    assert (c.counted, found.mask.data, found.scale.data) == (1, "causal", 0.3)
    assert tensor(found.q).rank == 4
    assert found.bias is not None


# --- what it is not -------------------------------------------------------------------------------------------------


def near_miss(what: str) -> tuple[Case, SSAValue]:
    c = Case()
    g, logits = c.g, c.product()
    match what:
        case "scaled bias":
            weights = g.softmax(g.map("mul", g.map("add", logits, g.input("bias", ["t", "s"])), 0.5))
        case "bias under the cap":
            inner = g.map("add", logits, g.input("bias", ["t", "s"]))
            weights = g.softmax(g.map("mul", g.map("tanh", g.map("div", inner, 3.0)), 3.0))
        case "another cap outside":
            weights = g.softmax(g.map("mul", g.map("tanh", g.map("div", logits, 3.0)), 2.0))
        case "another axis":
            weights = g.softmax(logits, axis=-2)
        case "probabilities used":
            weights = g.softmax(logits)
            return c, g.matmul(g.map("add", weights, g.map("mul", weights, weights)), c.v)
        case _:
            weights = g.softmax(logits)
            product = g.matmul(weights, c.v)
            return c, g.map("add", product, g.reduce("sum", logits, -1, keepdims=True))
    return c, g.matmul(weights, c.v)


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("scaled bias", "attention: the bias is scaled, too"),
        ("bias under the cap", "attention: a bias is added inside the cap"),
        ("another cap outside", "attention: tanh of the logits over 3.0 is multiplied by 2.0"),
        ("another axis", ""),
        ("probabilities used", ""),
        ("logits used", "attention: the logits are used outside"),
    ],
)
def test_a_near_miss_says_what_failed(what: str, said: str, seed: int) -> None:
    c, out = near_miss(what)
    assert c.run(out, seed) is None
    assert (said in c.said) if said else not c.said
