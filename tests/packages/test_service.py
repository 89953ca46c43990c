"""The unit files, held against systemd itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from .tools import ROOT, attempt, run

UNITS = sorted((ROOT / "systemd").glob("*.service"))
# As systemd-analyze counts, times ten: 0 is best, 100 is worst. tests/vm/test_package.py asks the running manager.
EXPOSURE = 45


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_unit_is_understood(unit: Path, tmp_path: Path) -> None:
    """What it starts and documents is not installed here."""
    text = unit.read_text().replace("/usr/libexec/nvmeofd", "/bin/true")
    lines = [line for line in text.splitlines() if not line.startswith("Documentation=")]
    for other in UNITS:
        (tmp_path / other.name).write_text(other.read_text())
    (tmp_path / unit.name).write_text("\n".join(lines))
    done = attempt(["systemd-analyze", "verify", tmp_path / unit.name])
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_sandbox() -> None:
    run(["systemd-analyze", "security", "--offline=true", f"--threshold={EXPOSURE}", "systemd/nvmeofd.service"])
