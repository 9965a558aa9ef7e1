"""Matrix products."""

from __future__ import annotations

from typing import Any

from xdsl.ir import SSAValue

from tilewright.frontend.aten.indexing import diagonal_of
from tilewright.frontend.builder import Builder
from tilewright.frontend.registry import lowers
from tilewright.ir.dims import product
from tilewright.ir.graph.base import tensor
from tilewright.ir.graph.contraction import MatmulOp


@lowers("aten.linear.default")
def linear(c: Builder, input: SSAValue, weight: SSAValue, bias: SSAValue | None = None) -> SSAValue:
    x, w = tensor(input), tensor(weight)
    rows = c.reshape(input, [1, *x.dims]) if x.rank == 1 else input
    kernel = c.reshape(weight, [1, *w.dims]) if w.rank == 1 else weight
    out = c.reshape(c.emit(MatmulOp, rows, kernel, transpose_b=True), c.result.dims)
    return out if bias is None else c.map("add", out, bias)


@lowers("aten.matmul.default", "aten.mm.default", "aten.bmm.default", "aten.mv.default", "aten.dot.default",
        "aten.vdot.default")  # fmt: skip
def matmul(c: Builder, self: SSAValue, other: SSAValue) -> SSAValue:
    """Vectors become a row on the left and a column on the right."""
    a, b = tensor(self), tensor(other)
    left = c.reshape(self, [1, *a.dims]) if a.rank == 1 else self
    right = c.reshape(other, [*b.dims, 1]) if b.rank == 1 else other
    return c.reshape(c.emit(MatmulOp, left, right), c.result.dims)


@lowers("aten.addmm.default", "aten.baddbmm.default", "aten.addmv.default")
def addmm(c: Builder, self: SSAValue, mat1: SSAValue, mat2: SSAValue, *, beta: Any = 1, alpha: Any = 1) -> SSAValue:
    out = matmul(c, mat1, mat2)
    if alpha != 1:
        out = c.map("mul", out, alpha)
    if beta == 0:
        return out
    return c.map("add", out, self if beta == 1 else c.map("mul", self, beta))


@lowers("aten.outer.default", "aten.ger.default")
def outer(c: Builder, self: SSAValue, vec2: SSAValue) -> SSAValue:
    return c.map("mul", c.reshape(self, [*tensor(self).dims, 1]), vec2)


@lowers("aten.einsum.default")
def einsum(c: Builder, equation: str, tensors: list[SSAValue], *, path: Any = None) -> SSAValue:
    """Operands are contracted from left to right, each pair by one batched matmul."""
    terms, target = _spelled(equation, [tensor(t).rank for t in tensors])
    pairs = [_off_diagonal(c, value, term) for value, term in zip(tensors, terms, strict=True)]
    tensors, terms = [value for value, _ in pairs], [term for _, term in pairs]
    value, labels = c.cast(tensors[0], c.result.dtype), terms[0]
    for i, (other, term) in enumerate(zip(tensors[1:], terms[1:], strict=True)):
        needed = set(target).union(*terms[i + 2 :])
        value, labels = _contract(c, value, labels, c.cast(other, c.result.dtype), term, needed)
    summed = [axis for axis, x in enumerate(labels) if x not in target]
    value = c.reduce("sum", value, summed)
    labels = "".join(x for x in labels if x in target)
    return c.transpose(value, [labels.index(x) for x in target])


def _spelled(equation: str, ranks: list[int]) -> tuple[list[str], str]:
    """The labels of each operand and of the result; the axes of an ellipsis are labelled by letters that are free."""
    inputs, arrow, target = equation.replace(" ", "").partition("->")
    terms = inputs.split(",")
    counts = [rank - len(term.replace("...", "")) for term, rank in zip(terms, ranks, strict=True)]
    free = [letter for letter in map(chr, range(0x3B1, 0x3B1 + 64)) if letter not in equation]
    width = max((n for n, term in zip(counts, terms, strict=True) if "..." in term), default=0)
    # aligned at the right, as in broadcasting
    labels = "".join(free[:width])
    spelled = [term.replace("...", labels[width - n :]) for term, n in zip(terms, counts, strict=True)]
    if not arrow:
        letters = "".join(term.replace("...", "") for term in terms)
        target = "..." + "".join(sorted(x for x in set(letters) if letters.count(x) == 1))
    return spelled, target.replace("...", labels)


def _off_diagonal(c: Builder, value: SSAValue, labels: str) -> tuple[SSAValue, str]:
    """An operand whose labels are all different: of axes that share one, the elements where they agree."""
    for label in dict.fromkeys(labels):
        while labels.count(label) > 1:
            first, second = labels.index(label), labels.rindex(label)
            value = diagonal_of(c, value, first, second)
            labels = labels[:first] + labels[first + 1 : second] + labels[second + 1 :] + label
    return value, labels


@lowers("aten.bilinear.default")
def bilinear(
    c: Builder, input1: SSAValue, input2: SSAValue, weight: SSAValue, bias: SSAValue | None = None
) -> SSAValue:
    """One product of all pairs of features: [..., I * J] by [O, I * J]."""
    (out, *sides), dims = tensor(weight).dims, tensor(input1).dims[:-1]
    pairs = c.map("mul", c.reshape(input1, [*dims, sides[0], 1]), c.reshape(input2, [*dims, 1, sides[1]]))
    flat = c.reshape(pairs, [product(dims), sides[0] * sides[1]])
    found = c.emit(MatmulOp, flat, c.reshape(weight, [out, sides[0] * sides[1]]), transpose_b=True)
    found = c.reshape(found, [*dims, out])
    return found if bias is None else c.map("add", found, bias)


def _contract(
    c: Builder, a: SSAValue, a_labels: str, b: SSAValue, b_labels: str, needed: set[str]
) -> tuple[SSAValue, str]:
    """One pair: labels of both that are needed later are batch, of both that are not are summed."""
    a, a_labels = _without(c, a, a_labels, needed.union(b_labels))
    b, b_labels = _without(c, b, b_labels, needed.union(a_labels))
    batch = [x for x in a_labels if x in b_labels and x in needed]
    summed = [x for x in a_labels if x in b_labels and x not in needed]
    rows = [x for x in a_labels if x not in b_labels]
    columns = [x for x in b_labels if x not in a_labels]
    sizes = dict(zip(b_labels, tensor(b).dims, strict=True))
    # 1 stretches, so the other operand's size counts
    sizes |= {x: d for x, d in zip(a_labels, tensor(a).dims, strict=True) if d.constant != 1 or x not in sizes}

    def matrix(value: SSAValue, labels: str, groups: list[list[str]]) -> SSAValue:
        order = [labels.index(x) for group in groups for x in group]
        value = c.broadcast(c.transpose(value, order), [sizes[x] for group in groups for x in group])
        return c.reshape(value, [*[sizes[x] for x in groups[0]], *[product(sizes[x] for x in g) for g in groups[1:]]])

    left = matrix(a, a_labels, [batch, rows, summed])
    right = matrix(b, b_labels, [batch, summed, columns])
    out = c.emit(MatmulOp, left, right)
    return c.reshape(out, [sizes[x] for x in (*batch, *rows, *columns)]), "".join((*batch, *rows, *columns))


def _without(c: Builder, value: SSAValue, labels: str, needed: set[str]) -> tuple[SSAValue, str]:
    """A tensor with the labels that nobody else has summed out."""
    alone = [axis for axis, x in enumerate(labels) if x not in needed]
    return c.reduce("sum", value, alone), "".join(x for x in labels if x in needed)
