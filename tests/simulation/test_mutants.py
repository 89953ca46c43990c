"""The simulation notices when a safeguard of the core is taken out."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.simulation.mutants import MUTANTS, Catcher, DoesNotApply, Edit, Mutant, mutated

pytestmark = pytest.mark.usefixtures("quiet")


@pytest.mark.parametrize("mutant", MUTANTS, ids=str)
def test_caught(mutant: Mutant, record_property: Callable[[str, object], None]) -> None:
    with mutant.applied():
        caught = mutant.catcher.catch()
    assert caught is not None, f"the daemon that {mutant.breaks} was not noticed by {mutant.catcher}"
    record_property("caught", f"{mutant.catcher}, number {caught[0]}: {caught[1]}")


# What plays a few things only. The others are what test_everywhere.py and test_histories.py play at greater length.
QUICK = [mutant for mutant in MUTANTS if mutant.catcher.enough == 1 or mutant.catcher.name.startswith("as_it_is")]


@pytest.mark.parametrize("catcher", {str(mutant.catcher): mutant.catcher for mutant in QUICK}.values(), ids=str)
def test_unchanged_core_is_not_caught(catcher: Catcher) -> None:
    assert catcher.catch() is None


def test_nothing_is_left_of_them() -> None:
    before = [edit.target().__code__ for mutant in MUTANTS for edit in mutant.edits]
    for mutant in MUTANTS:
        with mutant.applied():
            pass
    assert [edit.target().__code__ for mutant in MUTANTS for edit in mutant.edits] == before


@pytest.mark.parametrize("old", ["this is not there", "    "], ids=["gone", "ambiguous"])
def test_text_that_is_not_there(old: str) -> None:
    edit = Edit("operations.guard:disconnect_unused", old, "")
    with pytest.raises(DoesNotApply):
        mutated(edit.target(), [edit])


def test_function_that_is_not_there() -> None:
    with pytest.raises(DoesNotApply):
        Edit("operations.guard:disconnect_used", "", "").target()
