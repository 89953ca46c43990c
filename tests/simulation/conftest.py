"""What tests of the simulation share."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from nvmeofd.log import log


@pytest.fixture
def quiet() -> Iterator[None]:
    """No log: tests that play thousands of histories would spend most of their time on it."""
    level = log.level
    log.setLevel(logging.CRITICAL + 1)
    yield
    log.setLevel(level)
