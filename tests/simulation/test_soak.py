"""The soak: what it counts, and that it tells which history to replay."""

from __future__ import annotations

import random
import re

import pytest

from tests.simulation import histories, soak
from tests.simulation.mutants import MUTANTS

pytestmark = pytest.mark.usefixtures("quiet")


def test_counts_what_it_plays() -> None:
    tally = soak.soak(range(3), 20)
    assert tally.histories == 3
    assert tally.operations == sum(
        histories.play(seed, histories.draw(random.Random(seed), 20)).operations for seed in range(3)
    )
    assert tally.kinds == {}


def test_a_violation_is_found_again_and_made_shorter() -> None:
    """With a guard that claims nothing."""
    (mutant,) = (one for one in MUTANTS if one.name == "no-claim")
    with mutant.applied():
        seed = next(seed for seed in range(100) if soak.complaints(seed, histories.draw(random.Random(seed), 40))[0])
        ops = histories.draw(random.Random(seed), 40)
        found = soak.complaints(seed, ops)[0]
        shorter = soak.shrink(seed, ops)
        assert len(shorter) < len(ops)
        assert soak.kind_of(soak.complaints(seed, shorter)[0]) == soak.kind_of(found)
    assert soak.complaints(seed, ops)[0] == []


def test_kinds_do_not_differ_in_numbers() -> None:
    assert soak.kind_of(["job 1 deleted nvme0"]) == soak.kind_of(["job 22 deleted nvme3"])
    assert not re.search(r"\d", soak.kind_of(["job 1 deleted nvme0"]))
