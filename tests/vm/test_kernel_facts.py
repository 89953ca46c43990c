"""The facts about the kernel that the daemon is built on, each seen on the real one. No daemon runs here."""

from __future__ import annotations

import errno
from collections.abc import Iterator

import pytest

from .guest import events, facts, initiator, target, users
from .harness import Guest, GuestCallError

NQN = "nqn.2024-01.org.example:facts"
pytestmark = pytest.mark.parametrize("kernel", ["debian13", "debian12"], indirect=True, scope="module")

OTHER_HOST = "nqn.2014-08.org.nvmexpress:uuid:00000000-0000-4000-8000-000000000001"
MIB = 1 << 20


@pytest.fixture(scope="module", autouse=True)
def subsystem(kernel: Guest) -> None:
    """Two namespaces, reachable over two addresses, open to any host."""
    kernel.call(target.add_subsystem, NQN, namespaces=2, ports=[1, 2])
    kernel.call(events.mark)
    kernel.snapshot("facts")


@pytest.fixture
def device(kernel: Guest) -> Iterator[str]:
    """Namespace 1, connected over two paths."""
    kernel.call(initiator.connect, NQN, "127.0.0.1")
    kernel.call(initiator.connect, NQN, "127.0.0.2")
    yield kernel.call(initiator.device, NQN, 1, timeout=30.0)
    kernel.call(users.end_all)
    kernel.call(initiator.disconnect, NQN, timeout=30.0)


def refusal(kernel: Guest, nqn: str = NQN, address: str = "127.0.0.1", options: str = "", host: str = "") -> int | None:
    """The errno of a connect that must not succeed."""
    with pytest.raises(GuestCallError) as caught:
        kernel.call(initiator.connect, nqn, address, options=options, host=host)
    return caught.value.errno


@pytest.mark.usefixtures("device")
class TestConnectErrors:
    def test_path_connected_already(self, kernel: Guest) -> None:
        assert refusal(kernel) == errno.EALREADY

    def test_nothing_listens(self, kernel: Guest) -> None:
        assert refusal(kernel, address="127.0.0.3") == errno.ECONNREFUSED

    def test_no_such_subsystem(self, kernel: Guest) -> None:
        assert refusal(kernel, nqn=f"{NQN}-unknown") == errno.EIO

    def test_unknown_option(self, kernel: Guest) -> None:
        assert refusal(kernel, options="no_such_option=1") == errno.EINVAL

    def test_host_id_in_use_with_another_host_nqn(self, kernel: Guest) -> None:
        """Linux 6.1 does not mind: there, the daemon has to see for itself."""
        if kernel.image.suite.number == 12:
            assert kernel.call(initiator.connect, NQN, host=OTHER_HOST).startswith("nvme")
        else:
            assert refusal(kernel, host=OTHER_HOST) == errno.EINVAL

    def test_known_options_can_be_read(self, kernel: Guest) -> None:
        known = kernel.call(initiator.known_options)
        assert "traddr=%s" in known
        assert "ctrl_loss_tmo=%d" in known
        assert "dhchap_secret=%s" in known


def test_host_not_allowed(kernel: Guest) -> None:
    closed = f"{NQN}-closed"
    kernel.call(target.add_subsystem, closed, ports=[3], hosts=[OTHER_HOST])
    try:
        assert refusal(kernel, nqn=closed, address="127.0.0.3") == errno.EIO
    finally:
        kernel.call(target.remove_subsystem, closed)


def test_ipv6_listener(kernel: Guest) -> None:
    kernel.call(target.link, NQN, 5)
    kernel.call(initiator.connect, NQN, "::1")
    found = kernel.call(initiator.connected, NQN, 2, timeout=30.0)
    assert found["controllers"][0]["address"].startswith("traddr=::1,trsvcid=4420")
    kernel.call(initiator.disconnect, NQN, timeout=30.0)
    kernel.call(target.unlink, NQN, 5)


def test_two_paths_are_one_device(kernel: Guest, device: str) -> None:
    found = kernel.call(facts.subsystem, NQN)
    assert found is not None
    assert [controller["state"] for controller in found["controllers"]] == ["live", "live"]
    assert {space["nsid"]: space["uuid"] for space in found["namespaces"]} == {
        nsid: target.namespace_uuid(NQN, nsid) for nsid in (1, 2)
    }
    assert all(space["wwid"] == f"uuid.{space['uuid']}" for space in found["namespaces"])
    hidden = kernel.run("grep -l 1 /sys/block/nvme*/hidden").out.split()
    assert len(hidden) == 4, "one hidden disk per path and namespace"
    assert device in {space["device"] for space in found["namespaces"]}


def test_names_swap_identities_stay(kernel: Guest) -> None:
    """What is nvme0n1 depends on which namespace was scanned first."""
    names = {}
    for first, second in ((1, 2), (2, 1)):
        kernel.call(target.enable_namespace, NQN, second, False)
        kernel.call(initiator.connect, NQN)
        kernel.call(initiator.device, NQN, first, timeout=30.0)
        kernel.call(target.enable_namespace, NQN, second, True)
        found = kernel.call(initiator.connected, NQN, 2, timeout=30.0)
        names[first] = {space["device"].removeprefix("/dev/"): space["uuid"] for space in found["namespaces"]}
        kernel.call(initiator.disconnect, NQN, timeout=30.0)
    assert names[1].keys() == names[2].keys()
    assert all(names[1][name] != names[2][name] for name in names[1])
    assert set(names[1].values()) == set(names[2].values())


class TestExclusiveClaim:
    """O_EXCL on a block device: who makes it fail."""

    def test_unused(self, kernel: Guest, device: str) -> None:
        assert kernel.call(initiator.claim, device) == ""

    def test_mounted(self, kernel: Guest, device: str) -> None:
        kernel.call(users.make_filesystem, device)
        kernel.call(users.mount, "mount", device, "/mnt/facts")
        assert kernel.call(initiator.claim, device) == "EBUSY"
        assert [mount["path"] for mount in kernel.call(facts.nvme_mounts)] == ["/mnt/facts"]
        kernel.call(users.end, "mount")
        assert kernel.call(initiator.claim, device) == ""

    def test_mounted_in_another_mount_namespace(self, kernel: Guest, device: str) -> None:
        kernel.call(users.make_filesystem, device)
        pid = kernel.call(users.private_mount, "private", device, "/mnt/private")
        assert kernel.call(facts.nvme_mounts) == [], "our own mount table does not show it"
        assert any(mount["source"] == device for mount in kernel.call(facts.mounts, str(pid)))
        assert kernel.call(initiator.claim, device) == "EBUSY"
        kernel.call(users.end, "private")
        assert kernel.call(initiator.claim, device) == ""

    def test_device_mapper(self, kernel: Guest, device: str) -> None:
        kernel.call(users.device_mapper, "stacked", device)
        assert kernel.call(initiator.claim, device) == "EBUSY"
        assert list(kernel.call(facts.holders)) == [device.removeprefix("/dev/")]
        kernel.call(users.end, "stacked")

    def test_swap(self, kernel: Guest, device: str) -> None:
        kernel.call(users.swap, "swap", device)
        assert kernel.call(initiator.claim, device) == "EBUSY"
        assert kernel.call(facts.swaps) == [device]
        kernel.call(users.end, "swap")

    def test_swap_on_a_node_that_is_removed(self, kernel: Guest, device: str) -> None:
        kernel.run(f"mkswap {device} && cp -a {device} /dev/other && swapon /dev/other && rm /dev/other")
        try:
            assert kernel.call(facts.swaps) == ["/dev/other\\040(deleted)"]
            assert kernel.call(initiator.claim, device) == "EBUSY"
        finally:
            kernel.run(["swapoff", device])

    def test_the_last_who_closes_it_writes(self, kernel: Guest, device: str) -> None:
        """Whoever closes it while it is claimed is not the last: what he wrote waits, and would go with the device."""
        backing = target.backing_file(NQN, 1)

        def write(text: str) -> bool:
            kernel.run(f"printf {text} | dd of={device} bs=5 count=1 conv=notrunc status=none")
            return written(text)

        def written(text: str) -> bool:
            return kernel.run(f"head -c 5 {backing}").out == text

        kernel.run(["udevadm", "settle"])  # while udev still looks at it, nobody else is the last
        assert write("first")
        kernel.call(initiator.hold_claim, device)
        try:
            assert not write("later")
            kernel.call(initiator.write_back, device)
            assert written("later")
        finally:
            kernel.call(initiator.release_claims)

    def test_block_bind_is_not_seen(self, kernel: Guest, device: str) -> None:
        kernel.call(users.block_bind, "raw", device, "/mnt/raw")
        assert kernel.call(initiator.claim, device) == ""
        (mount,) = kernel.call(facts.nvme_mounts)
        assert mount["fstype"] == "devtmpfs"
        assert mount["root"] == device.removeprefix("/dev")
        kernel.call(users.end, "raw")

    def test_open_file_is_not_seen(self, kernel: Guest, device: str) -> None:
        pid = kernel.call(users.opener, "reader", device)
        assert kernel.call(initiator.claim, device) == ""
        assert kernel.run(f"readlink /proc/{pid}/fd/0").out.strip() == device
        kernel.call(users.end, "reader")


def test_claimed_device_cannot_be_mounted_but_deleted(kernel: Guest) -> None:
    for address in ("127.0.0.1", "127.0.0.2"):
        kernel.call(initiator.connect, NQN, address)
    found = kernel.call(initiator.connected, NQN, 2, timeout=30.0)
    kernel.call(users.make_filesystem, found["namespaces"][0]["device"])
    for space in found["namespaces"]:
        kernel.call(initiator.hold_claim, space["device"])
    with pytest.raises(GuestCallError, match=r"already mounted or mount point busy|Can't open blockdev"):
        kernel.call(users.mount, "refused", found["namespaces"][0]["device"], "/mnt/refused")
    for controller in found["controllers"]:
        kernel.call(initiator.delete_controller, controller["name"])
    assert kernel.call(facts.controllers) == [], "deleting is synchronous"
    kernel.call(initiator.release_claims)
    assert kernel.call(facts.subsystems) == []
    assert kernel.run("ls /dev | grep -c nvme.n", check=False).out.strip() == "0"


def test_name_is_not_given_out_again_while_what_made_it_is_open(kernel: Guest) -> None:
    """So what sysfs has under the name that the kernel answered is that controller, or nothing."""
    (first, second), there = kernel.call(initiator.names_while_open, NQN, "127.0.0.1")
    assert first != second
    assert not there
    kernel.call(initiator.disconnect, NQN, timeout=30.0)
    assert kernel.call(initiator.connect, NQN, "127.0.0.1") == first, "closed it is free again"
    kernel.call(initiator.disconnect, NQN, timeout=30.0)


def test_mount_table_tells_changes_by_poll(kernel: Guest, device: str) -> None:
    kernel.call(users.make_filesystem, device)
    kernel.call(events.open_table, "facts")
    assert not kernel.call(events.table_changed, "facts")
    kernel.call(users.mount, "news", device, "/mnt/news")
    assert kernel.call(events.table_changed, "facts")
    assert not kernel.call(events.table_changed, "facts"), "told once"
    kernel.call(users.end, "news")
    assert kernel.call(events.table_changed, "facts")


class TestEvents:
    def test_connect_and_disconnect(self, kernel: Guest) -> None:
        start = kernel.call(events.mark)
        kernel.call(initiator.connect, NQN)
        kernel.call(initiator.connected, NQN, 2, timeout=30.0)
        kernel.call(events.wait, start, {"ACTION": "add", "SUBSYSTEM": "nvme-subsystem"}, timeout=10.0)
        kernel.call(events.wait, start, {"ACTION": "add", "SUBSYSTEM": "nvme"}, timeout=10.0)
        kernel.call(events.wait, start, {"ACTION": "change", "NVME_EVENT": "connected"}, timeout=10.0)
        kernel.call(events.wait, start, {"ACTION": "add", "SUBSYSTEM": "block"}, timeout=10.0)
        start = kernel.call(events.mark)
        kernel.call(initiator.disconnect, NQN, timeout=30.0)
        for kind in ("block", "nvme", "nvme-subsystem"):
            kernel.call(events.wait, start, {"ACTION": "remove", "SUBSYSTEM": kind}, timeout=10.0)

    def test_namespace_goes_comes_and_grows(self, kernel: Guest, device: str) -> None:
        start = kernel.call(events.mark)
        kernel.call(target.enable_namespace, NQN, 1, False)
        gone = kernel.call(
            events.wait, start, {"ACTION": "remove", "DEVNAME": device.removeprefix("/dev/")}, timeout=30.0
        )
        start = kernel.call(events.mark)
        kernel.call(target.enable_namespace, NQN, 1, True)
        again = kernel.call(initiator.device, NQN, 1, timeout=30.0)
        back = kernel.call(events.wait, start, {"ACTION": "add", "DEVNAME": again.removeprefix("/dev/")}, timeout=30.0)
        assert back["DISKSEQ"] != gone["DISKSEQ"], "another incarnation"
        start = kernel.call(events.mark)
        kernel.call(target.grow_namespace, NQN, 1, target.SIZE + 64 * MIB)
        kernel.call(events.wait, start, {"ACTION": "change", "RESIZE": "1"}, timeout=30.0)
        found = kernel.call(facts.subsystem, NQN)
        assert found is not None
        assert target.SIZE + 64 * MIB in {space["size"] for space in found["namespaces"]}

    def test_path_loss_has_no_event(self, kernel: Guest, device: str) -> None:
        found = kernel.call(facts.subsystem, NQN)
        assert found is not None
        lost = next(entry["name"] for entry in found["controllers"] if "127.0.0.2" in entry["address"])
        start = kernel.call(events.mark)
        kernel.call(target.unlink, NQN, 2)
        kernel.call(initiator.wait_state, lost, "connecting", timeout=30.0)
        assert kernel.call(events.since, start, ["nvme", "nvme-subsystem"]) == []
        assert kernel.run(["dd", f"if={device}", "of=/dev/null", "bs=4096", "count=1", "iflag=direct"]).rc == 0
        kernel.call(target.link, NQN, 2)
