"""Facts are frozen, of declared types, and the same after JSON; what is not what was written is refused."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tilewright.runtime.canonical import canonical_json
from tilewright.runtime.facts import VERSION, Account, Declined, Facts

words = st.text(max_size=12)
counts = st.dictionaries(words, st.integers(0, 1 << 40), max_size=3)
facts = st.builds(
    Facts,
    model=words,
    pipeline=words,
    precision=words,
    determinism=words,
    applied=counts,
    patterns=counts,
    refused=st.lists(st.builds(Declined, words, words, words, st.none() | words), max_size=3).map(tuple),
    notes=st.lists(words, max_size=3).map(tuple),
)


@given(facts)
def test_facts_are_the_same_after_json(wanted: Facts) -> None:
    assert Facts.from_json(json.loads(canonical_json(wanted.to_json()))) == wanted


@given(facts)
def test_an_account_adds_to_facts_and_stores_them_alone(wanted: Facts) -> None:
    account = Account.of(wanted, cache="hit", seconds={"capture": 0.5}, parts={"passes": {"fuse": 0.1}})
    assert account.stored() == wanted
    assert account.to_json() == wanted.to_json()
    assert replace(account, checked="agrees").stored() == wanted


def test_facts_do_not_change() -> None:
    given_counts = {"fuse": 1}
    made = Facts(applied=given_counts)
    given_counts["fuse"] = 2
    assert made.applied == {"fuse": 1}
    with pytest.raises(TypeError):
        made.applied["fuse"] = 3  # type: ignore[index]
    with pytest.raises(FrozenInstanceError):
        made.model = "other"  # type: ignore[misc]


PLAIN = Facts(applied={"fuse": 1}, refused=(Declined("fuse", "graph.map", "why"),), notes=("a",)).to_json()


@pytest.mark.parametrize(
    "change",
    [
        {"version": VERSION + 1},
        {"model": None},
        {"applied": {"fuse": True}},
        {"applied": {"fuse": "1"}},
        {"patterns": []},
        {"refused": [{"pass": "fuse"}]},
        {"refused": {}},
        {"notes": "a"},
        {"notes": [1]},
    ],
    ids=str,
)
def test_what_is_not_facts_is_refused(change: dict[str, Any]) -> None:
    assert Facts.from_json(PLAIN).notes == ("a",)
    with pytest.raises((KeyError, TypeError, ValueError)):
        Facts.from_json({**PLAIN, **change})


@pytest.mark.parametrize("name", sorted(PLAIN))
def test_every_fact_must_be_there(name: str) -> None:
    with pytest.raises(KeyError):
        Facts.from_json({key: value for key, value in PLAIN.items() if key != name})
