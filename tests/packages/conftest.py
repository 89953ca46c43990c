"""The packages under test, built out of the tracked files as they are."""

from __future__ import annotations

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
    # Under "make check", nothing of that make.
    run(["make", "-s", "install-data", f"DESTDIR={folder}"], MAKEFLAGS="", MFLAGS="")
    found = {f"/{path.relative_to(folder)}" for path in folder.rglob("*") if not path.is_dir()}
    assert found
    return found
