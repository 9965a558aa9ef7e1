from __future__ import annotations

import dataclasses
import json
from collections import namedtuple
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tilewright.errors import ArgumentError, ArtifactError
from tilewright.ir.trees import LEAF, Record, Tree

KEYS = st.text("abc", min_size=1, max_size=3)


def branches(parts: st.SearchStrategy[Tree]) -> st.SearchStrategy[Tree]:
    several = st.lists(parts, max_size=3).map(tuple)
    sequences = st.builds(lambda kind, children: Tree(kind, (), children), st.sampled_from(["list", "tuple"]), several)
    return sequences | st.dictionaries(KEYS, parts, max_size=3).map(lambda d: Tree("dict", tuple(d), tuple(d.values())))


TREES = st.recursive(st.just(LEAF), branches, max_leaves=8)


@given(TREES)
def test_rebuilding_and_flattening_are_inverse(tree: Tree) -> None:
    leaves = list(range(tree.leaves))
    assert tree.flatten(tree.rebuild(iter(leaves)), "x") == leaves
    paths = tree.paths("x")
    assert len(paths) == len(set(paths)) == tree.leaves


@given(TREES)
def test_json_round_trip(tree: Tree) -> None:
    assert Tree.from_json(json.loads(json.dumps(tree.to_json()))) == tree


@dataclasses.dataclass
class Output:
    first: Any
    second: Any = None


Pair = namedtuple("Pair", ["left", "right"])


def test_records_are_rebuilt_in_their_own_class_where_it_is_loaded() -> None:
    dataclass = Tree("record", ("first",), (LEAF,), f"{__name__}:Output")
    assert dataclass.rebuild(iter([1])) == Output(1)
    named = Tree("record", ("left", "right"), (LEAF, LEAF), f"{__name__}:Pair")
    assert named.rebuild(iter([1, 2])) == Pair(1, 2)
    assert named.flatten(Pair(3, 4), "x") == [3, 4]


@pytest.mark.parametrize("name", ["elsewhere:Output", "os:system", "builtins:dict", f"{__name__}:branches"])
def test_a_name_from_a_file_calls_nothing_but_such_classes(name: str) -> None:
    found = Tree("record", ("command",), (LEAF,), name).rebuild(iter(["echo"]))
    assert isinstance(found, Record)
    assert found.command == found["command"] == found[0] == "echo"
    assert list(found) == ["echo"]
    with pytest.raises(AttributeError, match="it has command"):
        _ = found.other


def test_another_structure_is_an_argument_error() -> None:
    tree = Tree("dict", ("a", "b"), (LEAF, Tree("list", (), (LEAF,))))
    with pytest.raises(ArgumentError, match=r"x has no key 'b'[\s\S]*x has an unknown key 'c'"):
        tree.flatten({"a": 1, "c": 2}, "x")
    with pytest.raises(ArgumentError, match=r"x\.b is a list of 2, compiled for a list of 1"):
        tree.flatten({"a": 1, "b": [1, 2]}, "x")
    with pytest.raises(ArgumentError, match="x is a int, compiled for a dict"):
        tree.flatten(3, "x")


@pytest.mark.parametrize("data", [None, {"kind": "set"}, {"kind": "dict", "keys": ["a"], "children": []}])
def test_malformed_json_is_an_artifact_error(data: Any) -> None:
    with pytest.raises(ArtifactError):
        Tree.from_json(data)
