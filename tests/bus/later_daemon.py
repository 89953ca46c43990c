"""A template of python-dbusmock: the service as a later version might be, which has more than the client knows.

Run by tests/bus/test_ctl_mock.py with `python -m dbusmock --template`.
"""

from __future__ import annotations

from typing import Any

BUS_NAME = "org.nvmeofd1"
MAIN_OBJ = "/org/nvmeofd1"
MAIN_IFACE = "org.nvmeofd1.Manager"
SYSTEM_BUS = True
IS_OBJECT_MANAGER = True

NQN = "nqn.2031-01.org.example:later"

_STAGE = """
if args[3] == "/srv/full":
    raise dbus.exceptions.DBusException("quota of 3 volumes", name="org.nvmeofd1.Error.QuotaExceeded")
if "timeout" not in args[4]:
    raise dbus.exceptions.DBusException("not so", name="com.example.Strange")
ret = (dbus.ObjectPath("/org/nvmeofd1/volume/new"), "/dev/nvme9n1")
"""


def load(mock: Any, parameters: dict[str, Any]) -> None:
    mock.AddMethods(
        MAIN_IFACE,
        [("Stage", "ssassa{sv}", "os", _STAGE), ("Unstage", "sa{sv}", "b", "ret = False")],
    )
    mock.AddProperties(MAIN_IFACE, {"Version": "9.0", "Uptime": 17, "Features": ["tls", "raid"]})
    mock.AddObject(
        f"{MAIN_OBJ}/subsystem/later",
        "org.nvmeofd1.Subsystem",
        {"NQN": NQN, "Colour": "green"},
        [("ListUsers", "", "a(sss)", 'ret = [("zoned-append", "/dev/nvme9n1", "")]')],
    )
    # Neither state nor size: a client must not rely on more than is there.
    mock.AddObject(
        f"{MAIN_OBJ}/volume/_2fsrv_2flater",
        "org.nvmeofd1.Volume",
        {"NQN": NQN, "StagingPath": "/srv/later", "State": "frozen", "Snapshots": 3},
        [],
    )
    mock.AddObject(f"{MAIN_OBJ}/tenant/x", "org.nvmeofd1.Tenant", {"Name": "x"}, [])
    mock.AddObject(f"{MAIN_OBJ}/job/7", "org.nvmeofd1.Job", {"Operation": "resize", "NQN": NQN}, [])
