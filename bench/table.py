"""Medians, and tables of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median
from time import perf_counter


def times(action: Callable[[], object], repeats: int, *, before: Callable[[], object] | None = None) -> list[float]:
    """How long an action takes, in milliseconds, each time anew. `before` prepares each one and is not counted."""
    taken = []
    for _ in range(repeats):
        if before is not None:
            before()
        start = perf_counter()
        action()
        taken.append((perf_counter() - start) * 1000)
    return taken


def show(title: str, rows: Sequence[tuple[str, Sequence[float]]], *, digits: int = 1) -> None:
    """A table: median, least and most of each row of milliseconds, and the median in terms of the first row's."""
    width = max(len(title), *(len(label) for label, _ in rows))
    print(f"\n{title:{width}}  {'median':>10}  {'least':>10}  {'most':>10}  {'ratio':>7}  {'runs':>5}")
    base = median(rows[0][1])
    for label, values in rows:
        middle = median(values)
        print(
            f"{label:{width}}  {middle:7.{digits}f} ms  {min(values):7.{digits}f} ms  {max(values):7.{digits}f} ms"
            f"  {middle / base:7.3g}  {len(values):5}"
        )
