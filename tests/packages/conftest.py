"""The packages under test, built out of the tracked files as they are."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

import nvmeofd

from .tools import ROOT, run


@pytest.fixture(scope="session")
def deb() -> Path:
    run(["scripts/build-deb.sh"])
    return ROOT / "build/deb" / f"nvmeofd_{nvmeofd.__version__}_all.deb"


@pytest.fixture(scope="session")
def rpm() -> Path:
    run(["scripts/build-rpm.sh"])
    (built,) = (ROOT / "build/rpm/RPMS/noarch").glob("*.rpm")
    return built


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """What `make install-data` installs, by path. Both packages call it."""
    folder = tmp_path_factory.mktemp("data")
    environment = {key: text for key, text in os.environ.items() if key not in ("MAKEFLAGS", "MFLAGS", "MAKEOVERRIDES")}
    subprocess.run(
        ["make", "-s", "install-data", f"DESTDIR={folder}"], cwd=ROOT, env=environment, check=True, capture_output=True
    )
    found = {f"/{path.relative_to(folder)}" for path in folder.rglob("*") if not path.is_dir()}
    assert found
    return found
