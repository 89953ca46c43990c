"""Play many random histories, or replay and shrink one: ``python -m tests.simulation.soak --seeds 10000``.

``python -m tests.simulation.soak --replay 1234`` shows what happened in one, made as short as it gets.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import random
import re
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field

from nvmeofd.log import log
from tests.simulation.acts import Op
from tests.simulation.histories import KINDS, draw, play

PART = 100  # histories that a process plays at a time
TELL = 5000  # histories after which it says how far it is


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


@dataclass
class Tally:
    """What became of some histories."""

    histories: int = 0
    operations: int = 0
    kinds: dict[str, list[int]] = field(default_factory=dict)  # kind of complaint → seeds

    def add(self, other: Tally) -> None:
        self.histories += other.histories
        self.operations += other.operations
        for kind, seeds in other.kinds.items():
            self.kinds.setdefault(kind, []).extend(seeds)


def soak(seeds: range, length: int) -> Tally:
    """Play the histories of these seeds."""
    tally = Tally()
    for seed in seeds:
        found, done = complaints(seed, draw(random.Random(seed), length))
        tally.histories += 1
        tally.operations += done
        if found:
            tally.kinds.setdefault(kind_of(found), []).append(seed)
            print(f"seed {seed}: {found[0]}", flush=True)
    return tally


def prepare(without: list[str]) -> None:
    """What each process of a soak needs: no log, and not the kinds of acts that are left out."""
    for kind in without:
        del KINDS[kind]
    log.handlers[:] = [logging.NullHandler()]
    log.propagate = False
    log.setLevel(logging.CRITICAL + 1)


def soak_side_by_side(first: int, seeds: int, length: int, jobs: int, without: list[str]) -> int:
    """Play them in several processes, tell how far it is, and in the end what was found."""
    started = time.monotonic()
    tally = Tally()
    parts = [range(start, min(start + PART, first + seeds)) for start in range(first, first + seeds, PART)]
    with ProcessPoolExecutor(jobs, initializer=prepare, initargs=(without,)) as pool:
        for done in as_completed([pool.submit(soak, part, length) for part in parts]):
            tally.add(done.result())
            if tally.histories % TELL == 0:
                print(f"{tally.histories} of {seeds} histories, {tally.operations} operations", flush=True)
    bad = sum(map(len, tally.kinds.values()))
    seconds = time.monotonic() - started
    print(f"{tally.histories} histories, {tally.operations} operations, {bad} violations, {seconds:.0f} s")
    for kind, where in sorted(tally.kinds.items(), key=lambda item: -len(item[1])):
        print(f"{len(where)} of {kind}: seeds {', '.join(map(str, sorted(where)[:10]))}")
        print(f"    replay: python -m tests.simulation.soak --replay {min(where)}")
    return bool(bad)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--first", type=int, default=0, metavar="SEED")
    parser.add_argument("--seeds", type=int, default=1000, metavar="N")
    parser.add_argument("--length", type=int, default=40, metavar="OPS")
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1, metavar="N", help="processes, one for each CPU"
    )
    parser.add_argument("--replay", type=int, metavar="SEED")
    parser.add_argument("--without", nargs="*", default=[], choices=KINDS, metavar="KIND")
    arguments = parser.parse_args()
    if arguments.replay is not None:
        prepare(arguments.without)
        return replay(arguments.replay, arguments.length)
    return soak_side_by_side(arguments.first, arguments.seeds, arguments.length, arguments.jobs, arguments.without)


if __name__ == "__main__":
    sys.exit(main())
