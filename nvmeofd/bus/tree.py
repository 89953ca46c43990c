"""The objects by path, and what the bus is told when they come, change and go."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

from nvmeofd.bus.dbusnext import encode_body, variant
from nvmeofd.bus.introspection import Interface
from nvmeofd.bus.messages import OBJECT_MANAGER, PROPERTIES, Message, MessageType
from nvmeofd.bus.objects import Exported
from nvmeofd.bus.paths import ROOT

LISTING_TURN = 0.01  # seconds that a listing of all objects may hold the loop at a time


def variants(interface: Interface, values: dict[str, Any]) -> dict[str, Any]:
    """Property values for a place of type ``a{sv}``."""
    return {name: variant(interface.properties[name].signature, value) for name, value in values.items()}


class ObjectTree:
    """Exported objects. ``send`` gets the signals."""

    def __init__(self, send: Callable[[Message], object]) -> None:
        self._send = send
        self._objects: dict[str, Exported] = {}
        # Encoding is what GetManagedObjects costs: 6 s for 5,000 objects. Hence the bytes of each object are kept,
        # with the values that they were made of.
        self._entries: dict[str, tuple[dict[str, Any], bytes]] = {}

    def get(self, path: str) -> Exported | None:
        return self._objects.get(path)

    def add(self, obj: Exported) -> None:
        """Export ``obj`` and announce it. The manager is not announced: it is there as long as the name."""
        if obj.path in self._objects:
            self.remove(obj.path)
        self._objects[obj.path] = obj
        obj.published = obj.read(obj.interface.announced)
        if obj.path != ROOT:
            self.signal(ROOT, OBJECT_MANAGER, "InterfacesAdded", "oa{sa{sv}}", body=self._entry(obj))

    def remove(self, path: str) -> None:
        obj = self._objects.pop(path, None)
        self._entries.pop(path, None)
        if obj is not None:
            self.signal(ROOT, OBJECT_MANAGER, "InterfacesRemoved", "oas", path, [obj.interface.name])

    def changed(self, obj: Exported) -> None:
        """Announce the properties that have another value than was last announced, those that do announce."""
        now = obj.read(obj.interface.announced)
        changed = {name: value for name, value in now.items() if obj.published[name] != value}
        if changed:
            obj.published = now
            body = [obj.interface.name, variants(obj.interface, changed), []]
            self.signal(obj.path, PROPERTIES, "PropertiesChanged", "sa{sv}as", *body)

    def signal(
        self, path: str, interface: str, member: str, signature: str, *values: Any, body: bytes | None = None
    ) -> None:
        if body is None:
            body = encode_body(signature, list(values))
        self._send(
            Message(
                type=MessageType.SIGNAL, path=path, interface=interface, member=member, signature=signature, body=body
            )
        )

    def children(self, path: str) -> list[str]:
        """The names directly below ``path``, of objects and of what leads to objects."""
        prefix = path.rstrip("/") + "/"
        return sorted({one[len(prefix) :].partition("/")[0] for one in self._objects if one.startswith(prefix)})

    async def managed(self) -> bytes:
        """The body of a reply to GetManagedObjects.

        Objects are refreshed in portions, so that the loop stays responsive; what comes and goes meanwhile counts, as
        the reply must not contradict signals that went out before it.
        """
        loop = asyncio.get_running_loop()
        began = loop.time()
        for obj in list(self._objects.values()):
            if obj.path != ROOT and self._objects.get(obj.path) is obj:
                obj.refresh_listed()
                self._entry(obj)
            if loop.time() - began > LISTING_TURN:
                await asyncio.sleep(0)
                began = loop.time()
        return _array(self._entry(obj) for path, obj in self._objects.items() if path != ROOT)

    def _entry(self, obj: Exported) -> bytes:
        """The object's dict entry in a{oa{sa{sv}}}: the same bytes wherever it stands, as entries are 8-aligned."""
        values = obj.read(obj.interface.properties)
        kept = self._entries.get(obj.path)
        if kept is not None and kept[0] == values:
            return kept[1]
        interfaces = {obj.interface.name: variants(obj.interface, values)}
        entry = encode_body("oa{sa{sv}}", [obj.path, interfaces])
        self._entries[obj.path] = values, entry
        return entry


def _array(entries: Iterable[bytes]) -> bytes:
    """An array of 8-aligned elements: its length without the padding before the first, then the elements."""
    content = bytearray()
    for entry in entries:
        content += bytes(-len(content) % 8)
        content += entry
    return len(content).to_bytes(4, "little") + bytes(4) + content
