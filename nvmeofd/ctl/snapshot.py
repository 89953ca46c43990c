"""All objects of the daemon at one moment, with their properties under the names of the interface."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Properties = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Properties by object path, in the order in which they are shown."""

    subsystems: Mapping[str, Properties]
    volumes: Mapping[str, Properties]
    jobs: Mapping[str, Properties]

    @classmethod
    def of(cls, objects: Mapping[str, Mapping[str, Properties]]) -> Snapshot:
        """Sort what GetManagedObjects returned, by object path and interface."""
        found: dict[str, dict[str, Properties]] = {"Subsystem": {}, "Volume": {}, "Job": {}}
        for path, interfaces in objects.items():
            for interface, properties in interfaces.items():
                kind = interface.removeprefix("org.nvmeofd1.")
                if kind in found:
                    found[kind][path] = properties
        return cls(
            _sorted(found["Subsystem"], lambda path, one: (one.get("NQN", ""), path)),
            _sorted(found["Volume"], lambda path, one: (one.get("StagingPath", ""), path)),
            _sorted(found["Job"], lambda path, _: (job_number(path), path)),
        )

    def volumes_of(self, nqn: str) -> list[Properties]:
        return [one for one in self.volumes.values() if one.get("NQN") == nqn]

    def jobs_of(self, nqn: str) -> list[tuple[int, Properties]]:
        return [(job_number(path), one) for path, one in self.jobs.items() if one.get("NQN") == nqn]

    def nqns(self) -> list[str]:
        """Of all subsystems that are connected, have a volume, or are worked on."""
        found = [one.get("NQN", "") for one in (*self.subsystems.values(), *self.volumes.values(), *self.jobs.values())]
        return sorted({nqn for nqn in found if nqn})


def _sorted(objects: dict[str, Properties], key: Any) -> dict[str, Properties]:
    return dict(sorted(objects.items(), key=lambda item: key(*item)))


def job_number(path: str) -> int:
    """The number of the job with this object path, 0 if that is none."""
    number = path.rpartition("/")[2]
    return int(number) if number.isascii() and number.isdecimal() else 0
