"""A kernel of your own: the k most probable of each row's classes, softmax and selection in one pass over the logits.

python examples/softmax_topk.py
"""

from __future__ import annotations

import math

import torch

import tilewright as tw

ROWS = 8  # of one program


@tw.kernel("logits T[rows, classes] -> probabilities f32[rows, k], places i32[rows, k]")
def softmax_topk(b, logits, probabilities, places, *, classes, k, T):  # type: ignore[no-untyped-def]  # noqa: N803
    (row,) = b.grid(["rows"], [ROWS])
    width = -(-classes // 16) * 16
    x = b.cast(b.load(b.dense(logits), [row, 0], [ROWS, width], fill=-math.inf), "f32")
    e = b.map("exp", b.map("sub", x, b.reduce("max", x)))
    top, at = b.topk(x, k)
    p = b.map("div", b.map("exp", b.map("sub", top, b.reduce("max", x))), b.reduce("sum", e))
    b.store(p, b.dense(probabilities), [row, 0])
    b.store(at, b.dense(places), [row, 0])


def main() -> None:
    logits = torch.randn(1000, 100)
    probabilities, places = softmax_topk(logits, k=5)
    expected, at = logits.softmax(-1).topk(5)
    print("as torch:", torch.allclose(probabilities, expected), torch.equal(places, at.int()))
    compiled = softmax_topk.compile(classes=100, k=5, T="f32")
    traffic = softmax_topk.traffic(classes=100, k=5, T="f32")
    print(f"reads {traffic.read} bytes, writes {traffic.write}, no kernel less than {traffic.lower_bound} in all")
    print(compiled.report.at(rows=1000))


if __name__ == "__main__":
    main()
