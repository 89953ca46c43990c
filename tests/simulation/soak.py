"""Play many random histories, or replay and shrink one: ``python -m tests.simulation.soak --seeds 10000``.

``python -m tests.simulation.soak --replay 1234`` shows what happened in one, made as short as it gets.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import random
import re
import sys
import time

from nvmeofd.log import log
from tests.simulation.acts import Op
from tests.simulation.histories import KINDS, draw, play


def complaints(seed: int, ops: list[Op]) -> tuple[list[str], int]:
    """What is wrong with a history, and how many operations it had."""
    try:
        history = play(seed, ops)
    except Exception as error:  # noqa: BLE001 - whatever it is, the seed is to be reported
        return [f"{type(error).__name__}: {error}"], 0
    return history.complaints, history.operations


def kind_of(found: list[str]) -> str:
    """Complaints that differ in numbers only are of one kind."""
    return re.sub(r"\d+", "N", found[0])[:100]


def shrink(seed: int, ops: list[Op]) -> list[Op]:
    """Leave out what does not matter for the complaint."""
    wanted = kind_of(complaints(seed, ops)[0])
    again = True
    while again:
        again = False
        for size in (8, 4, 2, 1):
            start = 0
            while start < len(ops):
                shorter = ops[:start] + ops[start + size :]
                found = complaints(seed, shorter)[0]
                if found and kind_of(found) == wanted:
                    ops, again = shorter, True
                else:
                    start += size
    return ops


class _Show(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        try:
            now = asyncio.get_running_loop().time()
        except RuntimeError:
            now = 0.0
        print(f"      {now:.4f} {record.levelname.lower()}: {record.getMessage()}")


def replay(seed: int, length: int) -> int:
    ops = draw(random.Random(seed), length)
    found = complaints(seed, ops)[0]
    if found:
        ops = shrink(seed, ops)
    log.handlers[:] = [_Show()]
    log.setLevel(logging.DEBUG)
    history = play(seed, ops)
    print("\n".join(history.trace))
    print("\n".join(history.complaints) or "nothing is wrong")
    return bool(history.complaints)


def soak(first: int, seeds: int, length: int) -> int:
    kinds: dict[str, list[int]] = {}
    operations = 0
    started = time.monotonic()
    for seed in range(first, first + seeds):
        found, done = complaints(seed, draw(random.Random(seed), length))
        operations += done
        if found:
            kinds.setdefault(kind_of(found), []).append(seed)
            print(f"seed {seed}: {found[0]}", flush=True)
    bad = sum(map(len, kinds.values()))
    print(f"{seeds} histories, {operations} operations, {bad} bad, {time.monotonic() - started:.0f} s")
    for kind, where in sorted(kinds.items(), key=lambda item: -len(item[1])):
        print(f"{len(where)} of {kind}: seeds {', '.join(map(str, where[:10]))}")
    return bool(bad)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--first", type=int, default=0, metavar="SEED")
    parser.add_argument("--seeds", type=int, default=1000, metavar="N")
    parser.add_argument("--length", type=int, default=40, metavar="OPS")
    parser.add_argument("--replay", type=int, metavar="SEED")
    parser.add_argument("--without", nargs="*", default=[], choices=KINDS, metavar="KIND")
    arguments = parser.parse_args()
    for kind in arguments.without:
        del KINDS[kind]
    log.handlers[:] = [logging.NullHandler()]
    log.propagate = False
    if arguments.replay is not None:
        return replay(arguments.replay, arguments.length)
    return soak(arguments.first, arguments.seeds, arguments.length)


if __name__ == "__main__":
    sys.exit(main())
