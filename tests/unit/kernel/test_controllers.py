"""Deleting and rescanning: only ever the controller that was meant."""

from __future__ import annotations

import asyncio
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from nvmeofd.kernel.controllers import Controllers
from nvmeofd.kernel.interface import DeviceChanged
from nvmeofd.kernel.sysfs import Sysfs
from nvmeofd.model import Controller, ControllerId

from . import trees


@pytest.fixture
def controller(tmp_path: Path) -> Controller:
    subsystem = trees.subsystem(tmp_path, "nvme-subsys0")
    trees.controller(tmp_path, subsystem, "nvme0")
    found = Sysfs(str(tmp_path)).subsystem(trees.NQN)
    assert found
    return found.controllers[0]


def test_all(tmp_path: Path, controller: Controller) -> None:
    """Local ones, and those that are in no subsystem yet, and none whose end has begun."""
    assert Controllers(str(tmp_path)).all() == {controller.id}
    device = trees.write(tmp_path / "devices/virtual/nvme-fabrics/ctl/nvme1", transport="fc")
    trees.link(tmp_path / "class/nvme/nvme1", device)
    trees.link(tmp_path / "class/nvme/nvme2", tmp_path / "gone")
    assert Controllers(str(tmp_path)).all() == {controller.id, ControllerId("nvme1", device.stat().st_ino)}
    assert Controllers(str(tmp_path / "gone")).all() == frozenset(), "the module is not loaded"


def written(tmp_path: Path, attribute: str) -> str:
    return (tmp_path / "class/nvme/nvme0" / attribute).read_text()


def test_rescan(tmp_path: Path, controller: Controller) -> None:
    asyncio.run(Controllers(str(tmp_path)).rescan(controller))
    assert written(tmp_path, "rescan_controller").startswith("1")


@pytest.mark.parametrize("other", [{"instance": 1}, {"nqn": trees.NQN + "2"}, {"name": "nvme9"}])
def test_another_controller_is_not_touched(tmp_path: Path, controller: Controller, other: dict[str, object]) -> None:
    wanted = replace(controller, **other)  # type: ignore[arg-type]
    with pytest.raises(DeviceChanged):
        asyncio.run(Controllers(str(tmp_path)).rescan(wanted))
    if "nqn" not in other:
        asyncio.run(Controllers(str(tmp_path)).delete(wanted))
    assert written(tmp_path, "delete_controller") == "\n"
    assert written(tmp_path, "rescan_controller") == "\n"


def test_deleting_what_is_gone_succeeds(tmp_path: Path, controller: Controller) -> None:
    shutil.rmtree(os.path.realpath(tmp_path / "class/nvme/nvme0"))
    asyncio.run(Controllers(str(tmp_path)).delete(controller))
    (tmp_path / "class/nvme/nvme0").unlink()
    asyncio.run(Controllers(str(tmp_path)).delete(controller))


def test_a_refused_deletion_is_an_error(tmp_path: Path, controller: Controller) -> None:
    attribute = tmp_path / "class/nvme/nvme0/delete_controller"
    attribute.unlink()
    attribute.mkdir()
    with pytest.raises(IsADirectoryError):
        asyncio.run(Controllers(str(tmp_path)).delete(controller))
