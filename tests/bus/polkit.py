"""A polkit that does what a test tells it to, and gets from it whatever it was asked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from nvmeofd.bus import polkit
from nvmeofd.bus.connection import Connection
from nvmeofd.bus.dbusnext import decode_body, encode_body
from nvmeofd.bus.messages import Flags, Message, MessageType
from tests.bus.harness import PrivateBus

YES = (True, False)
NO = (False, False)
CHALLENGE = (False, True)

# What an administrator opens for the daemon, and what the package of polkit does for polkit.
POLICY = f"""
  <policy context="default">
    <allow send_destination="{polkit.NAME}"/>
    <allow own="{polkit.NAME}"/>
  </policy>"""


@dataclass(frozen=True, slots=True)
class Question:
    call: Message
    subject: tuple[str, str]
    action: str
    details: dict[str, str]
    flags: int
    cancellation: str


Rule = Callable[[Question], tuple[bool, bool] | None]


@dataclass
class FakePolkit:
    """Answers by ``rule``; None is no answer. ``questions`` and ``cancelled`` are what came in."""

    connection: Connection
    rule: Rule
    questions: list[Question] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    def on_call(self, call: Message) -> None:
        if (call.path, call.interface) != (polkit.PATH, polkit.INTERFACE):
            return
        arguments = decode_body(call)
        if call.member == "CancelCheckAuthorization":
            assert call.flags & Flags.NO_REPLY_EXPECTED
            self.cancelled += arguments
        elif call.member == "CheckAuthorization":
            assert call.signature == "(sa{sv})sa{ss}us"
            (kind, values), action, details, flags, cancellation = arguments
            question = Question(call, (kind, values["name"].value), action, details, flags, cancellation)
            self.questions.append(question)
            verdict = self.rule(question)
            if verdict is not None:
                self.reply(question, "(bba{ss})", [*verdict, {}])
        self._news.set()

    def reply(self, question: Question, signature: str, *values: Any, by: Connection | None = None) -> None:
        """``by``: somebody else who answers in its place."""
        (by or self.connection).send(
            Message(
                type=MessageType.METHOD_RETURN,
                reply_serial=question.call.serial,
                destination=question.call.sender,
                signature=signature,
                body=encode_body(signature, list(values)),
            )
        )

    def error(self, question: Question, name: str, text: str) -> None:
        self.connection.send(
            Message(
                type=MessageType.ERROR,
                error_name=name,
                reply_serial=question.call.serial,
                destination=question.call.sender,
                signature="s",
                body=encode_body("s", [text]),
            )
        )

    async def until(self, *, asked: int = 0, cancelled: int = 0) -> None:
        while len(self.questions) < asked or len(self.cancelled) < cancelled:
            self._news.clear()
            await self._news.wait()

    async def own(self) -> None:
        """Be polkit, in the place of whoever was."""
        (answer,) = await self.connection.call_bus("RequestName", "su", polkit.NAME, 1 | 2 | 4)
        assert answer == 1

    @property
    def actions(self) -> list[str]:
        return [question.action for question in self.questions]


@asynccontextmanager
async def authority(bus: PrivateBus, rule: Rule = lambda _: NO, *, own: bool = True) -> AsyncIterator[FakePolkit]:
    connection = await Connection.open(bus.address)
    fake = FakePolkit(connection, rule)
    connection.on_call = fake.on_call
    try:
        if own:
            await fake.own()
        yield fake
    finally:
        await connection.close()
