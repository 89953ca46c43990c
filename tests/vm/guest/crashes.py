"""Kill the daemon in the middle of an operation, at any boundary of it, and look at what the next life makes of it.

For each moment: a life that ends there, and another one; the last one is the daemon as it was installed. Within seconds
nothing half-done may be left, what the daemon says must be what the kernel shows, and the operation is done or undone.
Then the same call again succeeds, and everything can be taken down. What was written to the volumes meanwhile, and left
to the kernel to be written to the target, is there when they are staged once more.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

from . import bus, content, facts, initiator, mortal, service, target, users
from .waiting import command, wait_until

NQN = "nqn.2024-01.org.example:crash"
WITNESS = "nqn.2024-01.org.example:witness"  # has nothing to do with any of it
EXT4, OTHER, BLANK, RAW = 1, 2, 3, 4
BOTH = ["tcp://127.0.0.1:4420", "tcp://127.0.0.2:4420"]
PORTS = [1, 2]
# On a port of its own: one that still has another subsystem would refuse the first for good when it is cut off.
WITNESS_PORT, WITNESS_ADDRESSES = 3, ["tcp://127.0.0.3:4420"]
SRV = "/srv"
WITNESS_PATH, OTHER_PATH, PATH = f"{SRV}/witness", f"{SRV}/other", f"{SRV}/crash"
PATTERN = "6e766d656f6664" * 512
KEPT = "written before\n" * 4096
FRESH_AT = 1 << 20  # bytes from the start of a raw volume

# Less than the period after which the daemon looks at what it left behind without being told to.
WHOLE_SECONDS = 25.0
START_SECONDS = 90.0
NO_REPLY = "org.freedesktop.DBus.Error.NoReply"
ERROR = "org.nvmeofd1.Error."
LABEL = "crash"

Staged = dict[str, tuple[str, int]]  # staging path → NQN and number of the namespace


class Report(TypedDict):
    """`passed`: every boundary of the operation; `killed`: those that lives ended at; `wrong`: what was found."""

    passed: list[str]
    moments: int
    killed: list[str]
    wrong: list[str]
    seconds: float


def nothing() -> None:
    pass


@dataclass(frozen=True)
class Scenario:
    """An operation, what has to be there before it, and what is there when it is undone or done.

    `stranger`: somebody else has connected the subsystem before; `error`: what it ends in by itself; `mend`: what has
    to be done before anything can be staged again. With `half` the operation ends at that boundary, and it is the start
    after it that is to be survived.
    """

    act: Callable[[], bus.Reply]
    prepare: Callable[[], None] = nothing
    mend: Callable[[], None] = nothing
    undone: Staged = field(default_factory=dict)
    done: Staged = field(default_factory=dict)
    stranger: bool = False
    error: str = ""
    half: str = ""


def _stage(nsid: int, path: str = PATH, nqn: str = NQN, **options: Any) -> bus.Reply:
    named = {key.replace("_", "-"): value for key, value in options.items()}
    addresses = BOTH if nqn == NQN else WITNESS_ADDRESSES
    return bus.stage(nqn, f"uuid.{target.namespace_uuid(nqn, nsid)}", addresses, path, named)


def _format() -> bus.Reply:
    return _stage(BLANK, format="if-empty")


_numbers = itertools.count(1)
_fresh: dict[int, str] = {}  # what was written last to namespaces of NQN, and not looked at since


def _write(nsid: int, path: str) -> None:
    """Write something that was never written before, and leave it to the kernel when the target gets it.

    Raises RuntimeError: what was written there before is lost.
    """
    if _stale(nsid, path):
        raise RuntimeError(_lost_from(nsid))
    text = f"written for the {next(_numbers)}. time\n" * 4096
    if nsid == RAW:
        with open(path, "r+", encoding="ascii") as device:
            device.seek(FRESH_AT)
            device.write(text)
    else:
        Path(path, "fresh").write_text(text, encoding="ascii")
    _fresh[nsid] = text


def _written(nsid: int, path: str) -> str:
    """What is found in the place of what `_write` wrote."""
    if nsid == RAW:
        with open(path, encoding="ascii", errors="replace") as device:
            device.seek(FRESH_AT)
            return device.read(len(_fresh[nsid]))
    fresh = Path(path, "fresh")
    return fresh.read_text(encoding="ascii", errors="replace") if fresh.exists() else ""


def _blank() -> None:
    content.wipe(str(target.backing_file(NQN, BLANK)))
    _fresh.pop(BLANK, None)


def _staged() -> None:
    _succeeds(_stage(EXT4))
    _write(EXT4, PATH)


def _other_staged() -> None:
    _succeeds(_stage(OTHER, OTHER_PATH))
    _write(OTHER, OTHER_PATH)


def _both_staged() -> None:
    _other_staged()
    _staged()


def _blank_beside_other() -> None:
    _blank()
    _other_staged()


def _connected_by_hand() -> None:
    """By somebody who has written to a filesystem there, and unmounted it."""
    for address in ("127.0.0.1", "127.0.0.2"):
        initiator.connect(NQN, address)
    initiator.connected(NQN, 4)
    by_hand = "/mnt/by-hand"
    users.mount("by hand", initiator.device(NQN, EXT4), by_hand)
    _write(EXT4, by_hand)
    users.end("by hand")
    command(["udevadm", "settle"])


def _staged_and_dead() -> None:
    """With no path left. What is not on the target then would be lost, so that it is there is seen to before."""
    _succeeds(_stage(EXT4, reconnect_delay=1))
    _write(EXT4, PATH)
    command(["sync", "--file-system", PATH])
    Path(PATH, "late").write_text(KEPT, encoding="ascii")
    for port in PORTS:
        target.unlink(NQN, port)
    found = facts.subsystem(NQN)
    for controller in found["controllers"] if found is not None else []:
        initiator.wait_state(controller["name"], "connecting")


def _paths_back() -> None:
    for port in PORTS:
        target.link(NQN, port)


_AT_PATH = {PATH: (NQN, EXT4)}
_AT_OTHER = {OTHER_PATH: (NQN, OTHER)}
SCENARIOS = {
    "format": Scenario(_format, _blank, done={PATH: (NQN, BLANK)}),
    "stage": Scenario(lambda: _stage(EXT4), done=_AT_PATH),
    "read-only": Scenario(lambda: _stage(EXT4, read_only=True), done=_AT_PATH),
    "block": Scenario(lambda: _stage(RAW, type="block"), done={PATH: (NQN, RAW)}),
    "unstage": Scenario(lambda: bus.unstage(PATH), _staged, undone=_AT_PATH),
    "unstage-one": Scenario(lambda: bus.unstage(PATH), _both_staged, undone={**_AT_PATH, **_AT_OTHER}, done=_AT_OTHER),
    "force": Scenario(lambda: bus.unstage(PATH, {"force": True}), _staged_and_dead, mend=_paths_back, undone=_AT_PATH),
    "disconnect": Scenario(lambda: bus.disconnect(NQN), _connected_by_hand, stranger=True),
    "rollback": Scenario(lambda: _stage(EXT4, mount_options=["data=nonsense"]), error="MountFailed"),
    "start-connected": Scenario(lambda: _stage(EXT4), done=_AT_PATH, half="connect> 2"),
    "start-formatted": Scenario(
        _format,
        _blank_beside_other,
        undone=_AT_OTHER,
        done={PATH: (NQN, BLANK), **_AT_OTHER},
        half="make_filesystem> 1",
    ),
    "start-unmounted": Scenario(
        lambda: bus.unstage(PATH),
        _both_staged,
        undone={**_AT_PATH, **_AT_OTHER},
        done=_AT_OTHER,
        half="unmount> 1",
    ),
}


# ---- the module's own


def setup() -> None:
    """Targets with their data, and the service that looks for a plan."""
    target.add_subsystem(NQN, namespaces=4, ports=PORTS)
    target.add_subsystem(WITNESS, namespaces=1, ports=[WITNESS_PORT])
    for nqn, nsid in ((NQN, EXT4), (NQN, OTHER), (WITNESS, 1)):
        users.make_filesystem(str(target.backing_file(nqn, nsid)))
    content.write_at(str(target.backing_file(NQN, RAW)), 0, PATTERN)
    mortal.install()
    command(["systemctl", "daemon-reload"])
    for nsid in (EXT4, OTHER):
        _succeeds(_stage(nsid))
        Path(PATH, "kept").write_text(KEPT, encoding="ascii")
        _succeeds(bus.unstage(PATH))


def run(name: str, limit: int, timeout: float) -> Report:
    """Go through a scenario, at about `limit` moments (0: all of them); to be done within `timeout`."""
    deadline = time.monotonic() + timeout
    scenario = SCENARIOS[name]
    bus.subscribe(service.OWNER_CHANGED, LABEL)
    _succeeds(_stage(1, WITNESS_PATH, WITNESS))
    Path(WITNESS_PATH, "kept").write_text(KEPT, encoding="ascii")
    passed = _passed(scenario)
    chosen = choose(mortal.moments(passed), limit)
    report: Report = {
        "passed": passed,
        "moments": len(mortal.moments(passed)),
        "killed": [],
        "wrong": [],
        "seconds": 0.0,
    }
    # Starts are cut short several times in a row, each at a later boundary than the one before; that makes them cheap.
    each = 4 if scenario.half else 1
    for index in range(0, len(chosen), each):
        ends, last = chosen[index : index + each], index + each >= len(chosen)
        if time.monotonic() > deadline:
            report["wrong"].append(f"only {len(report['killed'])} of {len(chosen)} within {timeout} s")
            break
        killed, wrong = _attempt(scenario, ends, last=last)
        report["killed"] += killed
        report["wrong"] += [f"killed at {', '.join(killed)}: {text}" for text in wrong]
        if wrong:
            break  # as it is: one is enough to look at
    else:
        _succeeds(bus.unstage(WITNESS_PATH))
    bus.close(LABEL)
    report["seconds"] = time.monotonic() - (deadline - timeout)
    return report


def choose(moments: list[list[str]], limit: int) -> list[str]:
    """One boundary of each moment, the first or the last of it in turn; when limited, an even selection of them."""
    boundaries = [moment[-(index % 2)] for index, moment in enumerate(moments)]
    if not limit or len(boundaries) <= limit:
        return boundaries
    step = len(boundaries) / limit
    return [boundaries[int((index + 0.5) * step)] for index in range(limit)]


# ---- one life after the other


def _passed(scenario: Scenario) -> list[str]:
    """What the operation passes when nothing happens; with `half`, what the start after it does. Without, it is done in
    a life that the first moment can come in.
    """
    if scenario.half:
        _die_halfway(scenario, mortal.NEVER)
        _settle(scenario)
    else:
        _begin(mortal.WAIT)
        scenario.prepare()
        mortal.go(mortal.NEVER)
        reply = scenario.act()
        if reply["error"].removeprefix(ERROR) != scenario.error:
            raise RuntimeError(f"{reply['error']}: {reply['message']}")
    passed = mortal.lives()[-1]
    scenario.mend()
    _take_down(scenario)
    return passed


def _attempt(scenario: Scenario, ends: list[str], *, last: bool) -> tuple[list[str], list[str]]:
    """Have the operation (or the starts after it) end at these boundaries. Returns those reached, and what is wrong.

    The life after that is the one for the next attempt, should there be one, or an ordinary one.
    """
    ordinary = last or bool(scenario.half)
    if scenario.half:
        _die_halfway(scenario, *ends)
    else:
        mortal.plan(*([] if last else [mortal.WAIT]))
        scenario.prepare()
        since = bus.mark(LABEL)
        mortal.go(ends[0])
        _call_and_die(scenario)
        _wait_owner(since)
    reached = [life[-1] for life in mortal.lives() if life]
    killed = [end for end in reached if end in (scenario.half, *ends)] or [f"{reached[-1]} (after the reply)"]
    wrong = [] if _ordinary() is ordinary else ["this is another daemon than was to be started"]
    wrong = wrong or _settle(scenario) or _again(scenario)
    if not wrong:
        scenario.mend()
        _take_down(scenario)
        wrong = _settled(lambda: _differences([{}], stranger=False)) or (_lost() if last else [])
    return killed, wrong


def _die_halfway(scenario: Scenario, *ends: str) -> None:
    """End the operation where it is half-done, and the starts after that at these boundaries; one that does not come
    by its boundary (what it had to do there was done in the life before) ends when it has nothing left to do.
    """
    _begin(mortal.WAIT, *ends)
    scenario.prepare()
    since = bus.mark(LABEL)
    mortal.go(scenario.half)
    _call_and_die(scenario)
    while True:
        since = _wait_owner(since)
        if _ordinary() or ends == (mortal.NEVER,):
            return
        pid = facts.daemon()["pid"]
        _wait_idle(pid)
        _kill(pid)


def _wait_idle(pid: int) -> None:
    """Wait until a daemon is gone, or has nothing left to do for the subsystem."""

    def idle() -> bool:
        records = _records()
        staged = any(one["nqn"] == NQN for one in records["volume"])
        return not _half_done() and (staged or all(one["nqn"] != NQN for one in records["subsystem"]))

    wait_until(lambda: facts.daemon()["pid"] != pid or idle(), START_SECONDS, "nothing half-done")


def _call_and_die(scenario: Scenario) -> None:
    """Call it, and see the daemon end in the middle, or else let it end after its answer."""
    pid = facts.daemon()["pid"]
    if scenario.act()["error"] != NO_REPLY:
        _kill(pid)


def _again(scenario: Scenario) -> list[str]:
    """The same call to a daemon that nothing happens to."""
    reply = scenario.act()
    if reply["error"].removeprefix(ERROR) != scenario.error:
        return [f"again: {reply['error']}: {reply['message']}"]
    wrong = _settled(lambda: _differences([scenario.done], stranger=False)) or _damage(scenario.done)
    for path, (_, nsid) in scenario.done.items():
        if os.access(path, os.W_OK):  # not when staged read-only
            _write(nsid, path)
    return wrong


def _lost() -> list[str]:
    """Stage once more all that anything was written to. Returns what is not as it was written."""
    paths = {nsid: f"{SRV}/look-{nsid}" for nsid in _fresh}
    for nsid, path in paths.items():
        _succeeds(_stage(nsid, path, type="block" if nsid == RAW else "filesystem"))
    wrong = [_lost_from(nsid) for nsid, path in paths.items() if _stale(nsid, path)]
    for path in paths.values():
        _succeeds(bus.unstage(path))
    _fresh.clear()
    return wrong


def _lost_from(nsid: int) -> str:
    return f"what was written to namespace {nsid} is lost"


def _stale(nsid: int, path: str) -> bool:
    return nsid in _fresh and _written(nsid, path) != _fresh[nsid]


def _take_down(scenario: Scenario) -> None:
    for path in {**scenario.undone, **scenario.done}:
        _succeeds(bus.unstage(path))
    wait_until(lambda: facts.subsystem(NQN) is None, START_SECONDS, f"{NQN} to be disconnected")


def _begin(*ends: str) -> None:
    """A life with this plan, and plans for the next ones."""
    since = bus.mark(LABEL)
    mortal.plan(*ends)
    _kill(facts.daemon()["pid"])
    _wait_owner(since)


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _ordinary() -> bool:
    """Whether the daemon is the one of the package, and nothing else."""
    pid = facts.daemon()["pid"]
    return bool(pid) and b"/usr/libexec/nvmeofd" in Path(f"/proc/{pid}/cmdline").read_bytes()


def _wait_owner(since: int) -> int:
    """Wait until the name has got a new owner since the mark. Returns a mark for the next time."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        news = bus.wait_signal("NameOwnerChanged", "", since, LABEL, deadline - time.monotonic())
        since = news["number"] + 1
        if news["body"][2]:
            return since


def _succeeds(reply: bus.Reply) -> None:
    if reply["error"]:
        raise RuntimeError(f"{reply['error']}: {reply['message']}")


# ---- what is the case


def _settle(scenario: Scenario) -> list[str]:
    """Wait until the state is whole; returns what is not."""
    return _settled(lambda: _differences([scenario.undone, scenario.done], scenario.stranger))


def _settled(look: Callable[[], list[str]]) -> list[str]:
    try:
        wait_until(lambda: not look(), WHOLE_SECONDS, "everything whole")
    except TimeoutError:
        return look()
    return []


def _records() -> dict[str, list[dict[str, Any]]]:
    """The journal of the daemon by kind."""
    records: dict[str, list[dict[str, Any]]] = {"volume": [], "subsystem": [], "format": []}
    for text in facts.files(str(facts.DAEMON_RUN)).values():
        if text:
            data = json.loads(text)
            records[data["kind"]].append(data["record"])
    return records


def _half_done() -> list[str]:
    """What the journal says is not finished."""
    records = _records()
    return (
        [f"{one['staging_path']} in phase {one['phase']}" for one in records["volume"] if one["phase"] != "staged"]
        + [f"{one['nqn']} being connected" for one in records["subsystem"] if one["intent"] is not None]
        + [f"a format of {one['wwid']}" for one in records["format"]]
    )


def _differences(allowed: list[Staged], stranger: bool) -> list[str]:
    """What is not as one of the allowed states has it, or not the same in the daemon, its files and the kernel."""
    witness = {WITNESS_PATH: (WITNESS, 1)}
    states = [{**state, **witness} for state in allowed]
    objects = bus.managed_objects()
    volumes = [found["org.nvmeofd1.Volume"] for found in objects.values() if "org.nvmeofd1.Volume" in found]
    subsystems = [found["org.nvmeofd1.Subsystem"] for found in objects.values() if "org.nvmeofd1.Subsystem" in found]
    paths = sorted(volume["StagingPath"] for volume in volumes)
    state = next((state for state in states if sorted(state) == paths), None)
    if state is None:
        return [f"staged are {paths}", *_half_done()]
    return [
        *_half_done(),
        *_not_as_mounted(volumes, state),
        *_not_as_connected(subsystems, {nqn for nqn, _ in state.values()}, stranger),
        *_not_as_written(paths),
        *_damage({WITNESS_PATH: (WITNESS, 1)}),
    ]


def _not_as_mounted(volumes: list[dict[str, Any]], state: Staged) -> list[str]:
    wrong = []
    mounts = facts.nvme_mounts()
    paths = [mount["path"] for mount in mounts]
    if sorted(paths) != sorted(state):
        wrong.append(f"mounted are {paths}")
    for volume in volumes:
        path = volume["StagingPath"]
        nqn, nsid = state[path]
        wwid = f"uuid.{target.namespace_uuid(nqn, nsid)}"
        found = facts.subsystem(nqn)
        live = found is not None and all(one["state"] == "live" for one in found["controllers"])
        if (volume["NQN"], volume["Namespace"], volume["State"]) != (nqn, wwid, "staged" if live else "degraded"):
            wrong.append(f"the volume at {path} is {volume}")
        space = next((one for one in found["namespaces"] if one["wwid"] == wwid), None) if found else None
        mount = next((one for one in mounts if one["path"] == path), None)
        if space is None or mount is None or volume["Device"] != space["device"]:
            wrong.append(f"{path}: {volume['Device']}, {space}, {mount}")
        elif volume["Type"] == "block" and mount["root"] != space["device"].removeprefix("/dev"):
            wrong.append(f"{path} shows {mount['root']}, not {space['device']}")
        elif volume["Type"] == "filesystem" and mount["dev"] != space["dev"]:
            wrong.append(f"{path} shows {mount['dev']}, not {space['dev']}")
    if (there := sorted(os.path.join(SRV, name) for name in os.listdir(SRV))) != sorted(state):
        wrong.append(f"paths there are {there}")
    return wrong


def _not_as_connected(shown: list[dict[str, Any]], needed: set[str], stranger: bool) -> list[str]:
    """`stranger`: what somebody else connected is there with both paths, or not at all."""
    wrong = []
    connected = facts.subsystems()
    for found in connected:
        controllers = [[one["name"], one["transport"], one["state"]] for one in found["controllers"]]
        listed = [one for one in shown if one["NQN"] == found["nqn"]]
        if not listed or [[name, how, state] for name, how, _, state in listed[0]["Controllers"]] != controllers:
            wrong.append(f"{found['nqn']} has {controllers}, and the daemon shows {listed}")
        if stranger and found["nqn"] == NQN and len(controllers) != len(BOTH):
            wrong.append(f"left of {NQN} is {controllers}")
    names = {found["nqn"] for found in connected}
    if not needed <= names or not names <= needed | ({NQN} if stranger else set()):
        wrong.append(f"connected are {names}")
    if len(shown) != len(connected):
        wrong.append(f"the daemon shows {[one['NQN'] for one in shown]}")
    owned = {one["name"]: record["nqn"] for record in _records()["subsystem"] for one in record["controllers"]}
    there = {one["name"]: found["nqn"] for found in connected for one in found["controllers"]}
    if owned != {name: nqn for name, nqn in there.items() if not (stranger and nqn == NQN)}:
        wrong.append(f"owned are {owned}, there are {there}")
    entries = sorted(os.listdir(facts.REGISTRY)) if facts.REGISTRY.exists() else []
    owners = {path.parent.name: path.read_text(encoding="ascii") for path in facts.REGISTRY.glob("*/owner")}
    if entries != sorted(owned) or owners != dict.fromkeys(owned, "nvmeofd\n"):
        wrong.append(f"the registry has {entries}: {owners}")
    return wrong


def _not_as_written(paths: list[str]) -> list[str]:
    wrong = []
    recorded = sorted(record["staging_path"] for record in _records()["volume"])
    if recorded != paths:
        wrong.append(f"the journal has {recorded}")
    if hidden := [name for name in os.listdir(facts.DAEMON_RUN) if name.startswith(".")]:
        wrong.append(f"the journal has left {hidden}")
    return wrong


def _damage(state: Staged) -> list[str]:
    """Content of staged volumes that is not what was written there."""
    wrong = []
    for path, (nqn, nsid) in state.items():
        if (nqn, nsid) == (NQN, RAW):
            with open(path, "rb") as device:
                good = device.read(len(PATTERN) // 2) == bytes.fromhex(PATTERN)
        elif (nqn, nsid) == (NQN, BLANK):
            good = os.path.ismount(path)
        else:
            kept = Path(path, "kept")
            good = kept.exists() and kept.read_text(encoding="ascii") == KEPT
        if not good or (nqn == NQN and _stale(nsid, path)):
            wrong.append(f"the content of {path} is not what it was")
    return wrong
