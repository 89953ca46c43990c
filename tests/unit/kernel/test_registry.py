"""Entries in the registry of controllers, and what a crash leaves beside them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nvmeofd.kernel.registry import OWNER, Registry

NAME = "nvme3"
CALLS = ["mkdir", "rename", "rmdir", "unlink"]


class Killed(BaseException):
    """Nothing may catch it but what catches everything, and a process that is killed does not come to that."""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "sys/kernel").mkdir(parents=True)
    (tmp_path / "sys/kernel/uevent_seqnum").write_text("4711\n")
    return tmp_path


def new(root: Path) -> Registry:
    return Registry(str(root / "run"), str(root / "sys"))


def entries(root: Path) -> dict[str, dict[str, str]]:
    folder = root / "run/registry"
    return {one.name: {file.name: file.read_text() for file in one.iterdir()} for one in folder.iterdir()}


WHOLE = {NAME: {"owner": f"{OWNER}\n", "seqnum": "4711\n"}}


def test_claim_and_release(root: Path) -> None:
    new(root).release(NAME)
    assert new(root).owner(NAME) is None
    for _ in range(2):
        new(root).claim(NAME)
        assert entries(root) == WHOLE
        assert new(root).owner(NAME) == OWNER
    new(root).release(NAME)
    assert entries(root) == {}


def test_release_leaves_the_entry_of_another(root: Path) -> None:
    new(root).claim(NAME)
    (root / "run/registry" / NAME / "owner").write_text("stas\n")
    new(root).release(NAME)
    assert new(root).owner(NAME) == "stas"


@pytest.mark.parametrize("verb", ["claim", "release"])
@pytest.mark.parametrize("again", ["claim", "release"])
def test_killed_anywhere(root: Path, monkeypatch: pytest.MonkeyPatch, verb: str, again: str) -> None:
    """Whatever an earlier life left, the next claim or release of that controller leaves nothing else."""
    points = 0
    while _killed_at(root, monkeypatch, verb, points):
        getattr(new(root), again)(NAME)
        assert entries(root) == (WHOLE if again == "claim" else {}), points
        points += 1
    assert points >= 3


def _killed_at(root: Path, monkeypatch: pytest.MonkeyPatch, verb: str, point: int) -> bool:
    """Replace an entry, or remove it, and be killed at a point. Returns whether it came to that."""
    new(root).claim(NAME)
    left = point

    def wrapped(name: str) -> None:
        inner = getattr(os, name)

        def call(*args: object, **kwargs: object) -> object:
            nonlocal left
            left -= 1
            if left < 0:
                raise Killed
            return inner(*args, **kwargs)

        patch.setattr(os, name, call)

    with monkeypatch.context() as patch:
        for name in CALLS:
            wrapped(name)
        try:
            getattr(new(root), verb)(NAME)
        except Killed:
            return True
    return False


def test_not_a_controller(root: Path) -> None:
    with pytest.raises(ValueError, match="not the name"):
        new(root).owner("../nvme0")
