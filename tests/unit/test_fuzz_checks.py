"""What `make fuzz` runs, without a fuzzer: on the inputs that it begins with, whole and cut off."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from tests.fuzz import checks


@pytest.mark.parametrize("group", checks.GROUPS)
def test_the_first_inputs(group: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "nvmeofd")  # what is refused
    for seed in checks.seeds(group):
        for size in {0, 1, *range(2, len(seed), 1 + len(seed) // 8), len(seed)}:
            checks.run(group, seed[:size], tmp_path)
