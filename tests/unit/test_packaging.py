"""What the packages carry besides the code, held against rules that no tool checks."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from pathlib import Path

import nvmeofd
from nvmeofd.bus.authorization import Action, needed, reading
from nvmeofd.requests import parse_disconnect, parse_stage, parse_unstage
from scripts import release

ROOT = Path(__file__).parents[2]

# Each gives a service a mount namespace of its own: the host would not see what the daemon mounts.
MOUNT_NAMESPACE = re.compile(
    r"Protect(System|Home|KernelTunables|KernelModules|KernelLogs|ControlGroups|Proc)|ProcSubset|Private\w+|\w+Paths"
    r"|TemporaryFileSystem|BindLogSockets|MountAPIVFS|MountFlags|Root\w+|LogNamespace|DynamicUser"
)
# Each filters the sockets of NVMe/TCP, which the kernel makes in the control group of the daemon.
SOCKET_FILTER = re.compile(r"IPAddress\w+|SocketBind\w+|IP\w+FilterPath")


def service() -> dict[str, list[str]]:
    """Settings of the unit file, each with its values in order: a setting may be given several times."""
    settings: dict[str, list[str]] = {}
    for line in (ROOT / "systemd/nvmeofd.service").read_text().splitlines():
        if "=" in line and not line.startswith("#"):
            key, value = line.split("=", 1)
            settings.setdefault(key, []).append(value)
    return settings


def test_service_mounts_where_the_host_sees_it() -> None:
    assert [key for key in service() if MOUNT_NAMESPACE.fullmatch(key)] == []


def test_service_does_not_filter_sockets_of_the_kernel() -> None:
    assert [key for key in service() if SOCKET_FILTER.fullmatch(key)] == []


def test_service_reaches_the_sockets_of_systemd() -> None:
    """Notifications and the journal's own protocol; standard output stays what journald reads, with the unit known."""
    (families,) = service()["RestrictAddressFamilies"]
    assert "AF_UNIX" in families.split()
    assert not {"StandardError", "StandardOutput"} & set(service())


def test_service_is_what_the_bus_activates() -> None:
    activation = (ROOT / "dbus/org.nvmeofd1.service").read_text().splitlines()
    assert f"SystemdService={service()['Alias'][0]}" in activation
    assert f"Name={service()['BusName'][0]}" in activation


def test_bus_policy_lets_only_root_in() -> None:
    policies = ET.parse(ROOT / "dbus/org.nvmeofd1.conf").getroot().findall("policy")
    rules = {tuple(policy.attrib.items()): [(rule.tag, rule.attrib) for rule in policy] for policy in policies}
    assert rules == {
        # No more attributes: a rule with a type or an interface would let the rest pass.
        (("context", "default"),): [
            ("deny", {"send_destination": "org.nvmeofd1"}),
            ("deny", {"receive_sender": "org.nvmeofd1", "receive_type": "signal"}),
        ],
        (("user", "root"),): [
            ("allow", {"own": "org.nvmeofd1"}),
            ("allow", {"send_destination": "org.nvmeofd1"}),
            ("allow", {"receive_sender": "org.nvmeofd1", "receive_type": "signal"}),
        ],
    }


def test_versions_agree() -> None:
    assert set(release.stated(ROOT).values()) == {nvmeofd.__version__}


def test_changelog_has_what_is_unreleased_on_top() -> None:
    """Below it, the version that the tree states, unless none has been released yet."""
    headings = re.findall(r"(?m)^## (.*)$", (ROOT / "CHANGELOG.md").read_text())
    assert headings[0] == "Unreleased"
    assert all(re.fullmatch(rf"{release.NUMBER} - \d{{4}}-\d\d-\d\d", heading) for heading in headings[1:])
    assert release.newest_in_changelog(ROOT) in ("", nvmeofd.__version__)


def test_example_of_a_bus_policy_lets_a_group_call_and_nothing_else() -> None:
    (policy,) = ET.parse(ROOT / "examples/nvmeofd-storage.conf").getroot().findall("policy")
    assert policy.attrib == {"group": "storage"}
    assert [(rule.tag, rule.attrib) for rule in policy] == [
        ("allow", {"send_destination": "org.nvmeofd1", "send_type": "method_call"})
    ]


def test_polkit_wants_an_administrator_for_every_action() -> None:
    actions = ET.parse(ROOT / "polkit/org.nvmeofd1.policy").getroot().findall("action")
    defaults = {action.attrib["id"]: {one.tag: one.text for one in action.findall("defaults/*")} for action in actions}
    kinds = ("allow_any", "allow_inactive", "allow_active")
    assert defaults == {
        action: dict.fromkeys(kinds, "auth_admin_keep" if action is Action.READ else "auth_admin") for action in Action
    }


def test_documentation_has_every_detail_that_polkit_gets() -> None:
    needs = [
        needed(parse_stage("nqn.2024-01.org.example:one", "nsid.1", ["loop://"], "/srv/one", {})),
        needed(parse_unstage("/srv/one", {})),
        needed(parse_disconnect("nqn.2024-01.org.example:one", {})),
        reading("Introspect"),
    ]
    assert {need.action for need in needs} == set(Action)
    table = (ROOT / "docs/access.md").read_text().partition("| action | details |")[2]
    for need in needs:
        name = need.action.removeprefix("org.nvmeofd1.")
        row = re.search(rf"(?m)^\| `{name}` \| (.*) \|$", table)
        assert row is not None
        documented = re.sub(r"\([^)]*\)", "", row[1]).split(",")
        assert {part.partition(":")[0].strip(" `") for part in documented} == set(need.details)
