"""A model that decides by its sizes: right numbers for every size of the declared range, or a coded error."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
import torch

from tests.frontend.against_eager import assert_same, run
from tests.frontend.test_dims import Apply, floats
from tilewright.errors import SpecialisationError
from tilewright.frontend import Captured, capture
from tilewright.ir.dims import Dim

T, U = Dim("t", 0, 12), Dim("u", 0, 12)
Call = tuple[torch.Tensor, ...]


def either(decide: Callable[..., Any]) -> Callable[..., torch.Tensor]:
    """A function of one or two vectors with another result in each branch."""
    return lambda *given: given[0] * 2 + 1 if decide(*given) else given[0] * 3 - 1


def admitted(captured: Captured, **sizes: int) -> bool:
    inside = all(d.min <= sizes[d.name] <= (d.max or sizes[d.name]) for d in captured.dims)
    return inside and all(guard.holds(sizes) for guard in captured.guards)


def right_or_refused(captured: Captured, model: torch.nn.Module, calls: Iterable[Call]) -> list[tuple[int, ...]]:
    """The sizes that are admitted; for each of them the numbers are eager's."""
    found = []
    for call in calls:
        sizes = tuple(len(x) for x in call)
        if admitted(captured, **dict(zip(("t", "u"), sizes, strict=False))):
            assert_same(run(captured, *call), model(*call))
            found.append(sizes)
    return found


BRANCHES: dict[str, tuple[Callable[..., Any], Callable[[int], bool]]] = {
    # what the model asks, and the same of the number
    "unequal": (lambda a: a.shape[0] != 4, lambda t: t != 4),
    "equal": (lambda a: a.shape[0] == 4, lambda t: t == 4),
    "not one": (lambda a: a.shape[0] != 1, lambda t: t != 1),
    "not zero": (lambda a: a.shape[0] != 0, lambda t: t != 0),
    "more than one": (lambda a: a.shape[0] > 1, lambda t: t > 1),
    "two or more": (lambda a: a.shape[0] >= 2, lambda t: t >= 2),
    "less than two": (lambda a: a.shape[0] < 2, lambda t: t < 2),
    "at most six": (lambda a: a.shape[0] <= 6, lambda t: t <= 6),
    "odd": (lambda a: a.shape[0] % 2, lambda t: bool(t % 2)),
    "a multiple of three": (lambda a: a.shape[0] % 3 == 0, lambda t: t % 3 == 0),
    "half is not two": (lambda a: a.shape[0] // 2 != 2, lambda t: t // 2 != 2),
    "half is at most two": (lambda a: a.shape[0] // 2 <= 2, lambda t: t // 2 <= 2),
    "float": (lambda a: a.shape[0] * 0.5 > 3.2, lambda t: t * 0.5 > 3.2),
    "square": (lambda a: a.shape[0] ** 2 > 20, lambda t: t**2 > 20),
    "one of": (lambda a: a.shape[0] in (4, 8), lambda t: t in (4, 8)),
    "both": (lambda a: a.shape[0] > 2 and a.shape[0] % 2 == 0, lambda t: t > 2 and t % 2 == 0),
    "either": (lambda a: (a.shape[0] == 4) | (a.shape[0] % 5 == 0), lambda t: t == 4 or t % 5 == 0),
    "layout": (lambda a: a[:, None].expand(-1, 2).contiguous().mT.is_contiguous(), lambda t: t <= 1),
    "count": (lambda a: a[:, None].expand(-1, 2).numel() == 10, lambda t: t == 5),
    "root": (lambda a: math.sqrt(a.shape[0]) > 2.5, lambda t: math.sqrt(t) > 2.5),
}


@pytest.mark.parametrize("name", BRANCHES)
@pytest.mark.parametrize("example", [0, 1, 3, 4, 5, 8])
def test_no_size_of_the_declared_range_gets_the_wrong_branch(rng: np.random.Generator, name: str, example: int) -> None:
    decide, of_number = BRANCHES[name]
    model = Apply(either(decide))
    try:
        captured = capture(model, (floats(rng, example),), None, {"x": {0: T}})
    except SpecialisationError as refusal:
        text = str(refusal)
        assert "next: " in text
        # the line to paste, where there is one, compiles and admits the example
        if 'tw.Dim("t", ' in text:
            low, high = (int(n) for n in text.split('tw.Dim("t", ')[1].split(")", maxsplit=1)[0].split(", "))
            narrow = capture(model, (floats(rng, example),), None, {"x": {0: Dim("t", low, high)}})
            found = right_or_refused(narrow, model, [(floats(rng, t),) for t in range(low, high + 1)])
            if low < high:
                assert (example,) in found
        return
    found = right_or_refused(captured, model, [(floats(rng, t),) for t in range(13)])
    # no size that takes the example's branch is refused; without elements the branches are the same
    if example:
        assert {t for (t,) in found} >= {t for t in range(13) if of_number(t) == of_number(example)}


@pytest.mark.parametrize("example", [(3, 5), (4, 4), (1, 6), (6, 3)])
def test_two_sizes_compared_are_held_to_the_branch(rng: np.random.Generator, example: tuple[int, int]) -> None:
    for decide in (
        lambda a, b: a.shape[0] != b.shape[0],
        lambda a, b: a.shape[0] > b.shape[0],
        lambda a, b: a.shape[0] * 2 == b.shape[0],
        lambda a, b: a.shape[0] + b.shape[0] > 8,
        lambda a, b: (a.shape[0] == 4) | (b.shape[0] == 3),
    ):
        model = Apply(either(decide))
        calls = [(floats(rng, t), floats(rng, u)) for t in range(9) for u in range(9)]
        try:
            captured = capture(model, tuple(floats(rng, n) for n in example), None, {"x": {0: T}, "y": {0: U}})
        except SpecialisationError:
            continue
        assert example in right_or_refused(captured, model, calls)


def test_results_of_another_shape_are_held_to_the_branch(rng: np.random.Generator) -> None:
    models = {
        "squeezed": lambda a: (a[None] * a[:, None]).squeeze() * 1,
        "squeezed at an axis": lambda a: a[:, None].squeeze(0) * 2,
        "padded": lambda a: torch.cat([a, a[:1]]) if a.shape[0] % 2 else a + 0,
        "halved": lambda a: a.chunk(2)[0] * 2,
    }
    for function in models.values():
        model = Apply(function)
        for dim in (T, Dim("t", 1, 12), Dim("t", 2, 12)):
            try:
                captured = capture(model, (floats(rng, 5),), None, {"x": {0: dim}})
            except SpecialisationError:
                continue
            calls = [(floats(rng, t),) for t in range(13)]
            assert (5,) in right_or_refused(captured, model, calls)


@pytest.mark.parametrize("text", ["1::3", "1::2", "2:", "-2:", ":-2", "::2", "-5:", "3:5", ":1", "1:", "5::4"])
@pytest.mark.parametrize("example", [3, 7, 1])
def test_slices_are_right_at_every_size(rng: np.random.Generator, text: str, example: int) -> None:
    cut = tuple(int(part) if part else None for part in text.split(":"))
    model = Apply(lambda x: x[:, slice(*cut)] * 2)
    captured = capture(model, (floats(rng, 2, example),), None, {"x": {1: T}})
    assert not captured.guards
    for t in range(13):
        x = floats(rng, 2, t)
        assert_same(run(captured, x), model(x))


def test_an_index_that_may_be_negative_keeps_the_sign_it_has_in_the_example(rng: np.random.Generator) -> None:
    for function in (lambda a: a[a.shape[0] - 5 :] * 2, lambda a: a[: a.shape[0] - 5] * 2):
        model = Apply(function)
        with pytest.raises(SpecialisationError, match=r'tw\.Dim\("t", 5, 12\)'):
            capture(model, (floats(rng, 8),), None, {"x": {0: T}})
        captured = capture(model, (floats(rng, 8),), None, {"x": {0: Dim("t", 5, 12)}})
        for t in range(5, 13):
            x = floats(rng, t)
            assert_same(run(captured, x), model(x))


def test_sizes_of_zero_and_one_run_where_they_change_nothing(rng: np.random.Generator) -> None:
    table: dict[str, Callable[[torch.Tensor], Any]] = {
        "rolled": lambda a: a.roll(1, 0) + a.roll((2, -1), (0, 1)),
        "rolled flat": lambda a: a.roll(3),
        "merged": lambda a: a.mT.reshape(-1) * 2,
        "attention": lambda a: torch.nn.functional.scaled_dot_product_attention(
            a[None, None], a[None, None], a[None, None], is_causal=bool(a.shape[0] > 1)
        ),
        "split": lambda a: a.reshape(a.shape[0], 2, 3).transpose(1, 2).reshape(a.shape[0], 6),
    }
    for name, function in table.items():
        model = Apply(function)
        captured = capture(model, (floats(rng, 5, 6),), None, {"x": {0: Dim("t", 1 if name == "attention" else 0, 12)}})
        assert not captured.guards
        for t in range(1 if name == "attention" else 0, 13):
            x = floats(rng, t, 6)
            assert_same(run(captured, x), model(x))


def test_a_question_of_layout_does_not_answer_the_models_own(rng: np.random.Generator) -> None:
    model = Apply(lambda x: x.mT.reshape(-1) * (2 if x.shape[0] != 1 else 3))
    captured = capture(model, (floats(rng, 5, 6),), None, {"x": {0: T}})
    assert [t for t in range(13) if all(g.holds({"t": t}) for g in captured.guards)] == [0, *range(2, 13)]


def test_a_dim_without_an_upper_bound_is_held_to_the_branch(rng: np.random.Generator) -> None:
    for decide, admits in (
        (lambda a: a.shape[0] > 1, 'tw.Dim("t", 2)'),
        (lambda a: a.shape[0] < 9, 'tw.Dim("t", 1, 8)'),
    ):
        with pytest.raises(SpecialisationError) as caught:
            capture(Apply(either(decide)), (floats(rng, 5),), None, {"x": {0: Dim("t")}})
        assert admits in str(caught.value)
    captured = capture(Apply(either(lambda a: a.shape[0] % 2)), (floats(rng, 5),), None, {"x": {0: Dim("t")}})
    assert [str(g) for g in captured.guards] == ["mod(t, 2) != 0"]


def test_a_division_by_a_size_needs_that_size(rng: np.random.Generator) -> None:
    with pytest.raises(SpecialisationError, match=r'tw\.Dim\("t", 1, 12\)'):
        capture(Apply(lambda a: a[: 10 // a.shape[0]] * 2), (floats(rng, 5),), None, {"x": {0: T}})


def test_a_saved_program_keeps_the_guards_of_its_branches(rng: np.random.Generator, tmp_path: Any) -> None:
    for decide, holds in (
        (lambda a: a.shape[0] % 2 == 1 and a.shape[0] != 7, lambda t: t % 2 == 1 and t != 7),
        (lambda a: a.shape[0] != 4 or a.shape[0] == 8, lambda t: t != 4),
    ):
        model = Apply(either(decide))
        shapes = {"x": {0: torch.export.Dim.AUTO(min=2, max=12)}}
        program = torch.export.export(model, (floats(rng, 5),), dynamic_shapes=shapes)
        torch.export.save(program, tmp_path / "model.pt2")
        for source in (program, tmp_path / "model.pt2"):
            captured = capture(source)
            (dim,) = captured.dims
            assert dim.min == 2
            admits = [t for t in range(2, 13) if all(g.holds({dim.name: t}) for g in captured.guards)]
            assert admits == [t for t in range(2, 13) if holds(t)]


def test_a_program_is_held_to_the_sizes_it_was_traced_for(rng: np.random.Generator, tmp_path: Any) -> None:
    model = Apply(either(lambda a: a.shape[0] > 1))
    for rows in (torch.export.Dim("rows", max=12), torch.export.Dim("rows", min=1, max=12), torch.export.Dim("rows")):
        program = torch.export.export(model, (floats(rng, 5),), dynamic_shapes={"x": {0: rows}})
        torch.export.save(program, tmp_path / "model.pt2")
        for source in (program, tmp_path / "model.pt2"):
            assert [d.min for d in capture(source).dims] == [2]
            with pytest.raises(SpecialisationError, match=r'tw\.Dim\("t", 2'):
                capture(source, (), None, {"x": {0: Dim("t", 1, 12)}})
            captured = capture(source, (), None, {"x": {0: Dim("t", 2, 12)}})
            for t in range(2, 13):
                x = floats(rng, t)
                assert_same(run(captured, x), model(x))


GUARDED: dict[str, Callable[[torch.Tensor], Any]] = {
    "a division": lambda x: x.sum(0) * (1 / x.shape[0] if x.shape[0] > 0 else 0.0),
    "a negative power": lambda x: x * (x.shape[0] ** -0.5 if x.shape[0] else 1),
    "a division that the graph has": lambda x: x.sum(0) / x.shape[0] if x.shape[0] else x.sum(0),
}


@pytest.mark.parametrize("name", GUARDED)
@pytest.mark.parametrize("example", [1, 5])
def test_a_number_that_only_some_sizes_have_is_a_branch_like_others(
    rng: np.random.Generator, name: str, example: int, capfd: pytest.CaptureFixture[str]
) -> None:
    model = Apply(GUARDED[name])
    try:
        captured = capture(model, (floats(rng, example, 6),), None, {"x": {0: T}})
    except SpecialisationError as refusal:
        # the one size that takes the other branch is refused
        assert 'tw.Dim("t", 1, 12)' in str(refusal)  # noqa: PT017
    else:
        for t in range(13):
            if admitted(captured, t=t):
                x = floats(rng, t, 6)
                assert_same(run(captured, x), model(x))
    assert capfd.readouterr().err == ""
