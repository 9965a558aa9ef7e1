"""The catalogue says of every op what its declaration says."""

from __future__ import annotations

from tilewright.ir.catalogue import catalogue
from tilewright.ir.graph.dialect import GRAPH_OPS


def test_every_graph_op_is_listed_in_order() -> None:
    assert [entry.name for entry in catalogue("graph")] == [op.name for op in GRAPH_OPS]
    assert {entry.dialect for entry in catalogue()} >= {"graph", "tile"}
    assert catalogue("nothing") == []


def test_signatures_show_what_may_be_left_out() -> None:
    shown = {entry.name: entry.signature for entry in catalogue("graph")}
    assert shown["graph.norm"] == "graph.norm(x, [weight], [bias]) {kind: Str, eps: Float} -> out"
    assert shown["graph.matmul"] == 'graph.matmul(a, b) {transpose_b: Bool = false, result: Str = ""} -> out'
    assert shown["graph.concat"] == "graph.concat(xs...) {axis: Int} -> out"
    assert shown["graph.state_write"] == "graph.state_write(value) {name: Str}"
    assert shown["graph.topk"] == "graph.topk(x) {k: Int, axis: Int} -> values, indices"
    assert (
        shown["graph.group"]
        == 'graph.group(args...) {kind: Str, name: Str = "", schedule: Schedule = {}} region -> outs...'
    )


def test_every_entry_has_a_doc_line() -> None:
    for entry in catalogue():
        assert entry.doc, entry.name
        assert "\n" not in entry.doc
