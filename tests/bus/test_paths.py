"""Object paths, against the library that the rest of the system uses."""

from __future__ import annotations

import ctypes
import ctypes.util

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nvmeofd.bus.paths import escape, job_path, subsystem_path, volume_path

_sd_bus = ctypes.CDLL("libsystemd.so.0")
_libc = ctypes.CDLL(None)
_libc.free.argtypes = [ctypes.c_void_p]


def sd_bus_path_encode(prefix: str, label: bytes) -> str:
    found = ctypes.c_char_p()
    assert _sd_bus.sd_bus_path_encode(prefix.encode(), label, ctypes.byref(found)) >= 0
    assert found.value is not None
    value = found.value.decode("ascii")
    _libc.free(found)
    return value


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("", "_"),
        ("abc9", "abc9"),
        ("9abc", "_39abc"),
        ("a-b", "a_2db"),
        ("a_b", "a_5fb"),
        ("/srv/vol 1\n", "_2fsrv_2fvol_201_0a"),
        ("ü", "_c3_bc"),
        ("nqn.2024-01.org:x", "nqn_2e2024_2d01_2eorg_3ax"),
    ],
)
def test_escape(label: str, expected: str) -> None:
    assert escape(label) == expected


@given(st.binary().filter(lambda raw: b"\0" not in raw))
@example(b"")
@example(b"0")
@example(b"\xff\xfe/srv")
def test_escape_is_that_of_sd_bus(raw: bytes) -> None:
    assert "/p/" + escape(raw.decode("utf-8", "surrogateescape")) == sd_bus_path_encode("/p", raw)


@given(st.text(st.characters(exclude_categories=["Cs"])), st.text(st.characters(exclude_categories=["Cs"])))
def test_two_labels_are_two_paths(one: str, other: str) -> None:
    assert (escape(one) == escape(other)) == (one == other)


def test_paths_of_objects() -> None:
    assert subsystem_path("nqn.2024-01.org:x") == "/org/nvmeofd1/subsystem/nqn_2e2024_2d01_2eorg_3ax"
    assert volume_path("/srv/vol1") == "/org/nvmeofd1/volume/_2fsrv_2fvol1"
    assert job_path(17) == "/org/nvmeofd1/job/17"
