"""A strict reader of Prometheus' text format, version 0.0.4, written from its description.

https://prometheus.io/docs/instrumenting/exposition_formats. Stricter than that in what a well-behaved exporter does
anyway: all lines of a metric together, HELP and TYPE once and first, counters called ``…_total``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
LABEL = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
NUMBER = re.compile(r"[+-]?(\d+(\.\d+)?(e[+-]?\d+)?|Inf)|NaN")
ESCAPES = {"\\": "\\", '"': '"', "n": "\n"}
SUFFIXES = {"histogram": ("_bucket", "_sum", "_count"), "gauge": ("",), "counter": ("",)}

Labels = frozenset[tuple[str, str]]


class Malformed(AssertionError):
    pass


@dataclass
class Metric:
    name: str
    help: str
    type: str = ""
    samples: dict[tuple[str, Labels], float] = field(default_factory=dict)


class Metrics(dict[str, Metric]):
    """Metrics by name."""

    def value(self, name: str, **labels: str) -> float:
        """The value of one series. Raises KeyError."""
        family = next(one for one in self.values() if name in (one.name + s for s in SUFFIXES[one.type]))
        return family.samples[name, frozenset(labels.items())]

    def labels(self, name: str, label: str) -> set[str]:
        """All values of a label."""
        return {value for _, labels in self[name].samples for key, value in labels if key == label}

    def changes(self, later: Metrics, name: str) -> dict[tuple[str, ...], float]:
        """By how much each series of a metric grew, by the sorted values of its labels; those that did not are out."""
        grown = {}
        for key, value in later[name].samples.items():
            difference = value - self[name].samples.get(key, 0)
            if difference:
                grown[tuple(value for _, value in sorted(key[1]))] = difference
        return grown


def parse(data: bytes) -> Metrics:
    """Raises Malformed."""
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise Malformed(str(error)) from None
    if text and not text.endswith("\n"):
        raise Malformed("the last line has no end")
    found = Metrics()
    current: Metric | None = None
    for line in text.split("\n")[:-1]:
        if line.startswith("# HELP "):
            name, _, words = line.removeprefix("# HELP ").partition(" ")
            if not NAME.fullmatch(name) or name in found:
                raise Malformed(f"{line!r}: no name, or not the first of it")
            current = found[name] = Metric(name, unescape(words, quotes=False))
        elif line.startswith("# TYPE "):
            name, _, kind = line.removeprefix("# TYPE ").partition(" ")
            if current is None or current.name != name or current.type or current.samples or kind not in SUFFIXES:
                raise Malformed(f"{line!r}: not where it belongs")
            current.type = kind
        else:
            name, labels, value = _sample(line)
            if current is None or name not in (current.name + s for s in SUFFIXES.get(current.type, ())):
                raise Malformed(f"{line!r} belongs to no metric")
            if (name, labels) in current.samples:
                raise Malformed(f"{line!r} is there twice")
            current.samples[name, labels] = value
    for metric in found.values():
        _check(metric)
    return found


def unescape(text: str, *, quotes: bool = True) -> str:
    def one(match: re.Match[str]) -> str:
        if match[1] not in ESCAPES or (match[1] == '"' and not quotes):
            raise Malformed(f"{match[0]!r} is no escape")
        return ESCAPES[match[1]]

    return re.sub(r"\\(.?)", one, text, flags=re.DOTALL)


def _sample(line: str) -> tuple[str, Labels, float]:
    name = NAME.match(line)
    if name is None:
        raise Malformed(f"{line!r} has no name")
    rest = line[name.end() :]
    labels: list[tuple[str, str]] = []
    if rest.startswith("{"):
        labels, rest = _labels(rest[1:])
    if len({key for key, _ in labels}) != len(labels):
        raise Malformed(f"{line!r} has a label twice")
    if not rest.startswith(" ") or not NUMBER.fullmatch(rest[1:]):
        raise Malformed(f"{line!r} has no value, or more")
    return name[0], frozenset(labels), float(rest[1:])


def _labels(rest: str) -> tuple[list[tuple[str, str]], str]:
    found = []
    while True:
        key = LABEL.match(rest)
        if key is None or rest[key.end() : key.end() + 2] != '="':
            raise Malformed(f"{rest!r}: a label should be here")
        rest = rest[key.end() + 2 :]
        value = re.match(r'(?:[^"\\]|\\.)*', rest, re.DOTALL)
        assert value is not None
        found.append((key[0], unescape(value[0])))
        rest = rest[value.end() :]
        if rest.startswith('",'):
            rest = rest[2:]
        elif rest.startswith('"}'):
            return found, rest[2:]
        else:
            raise Malformed(f"{rest!r}: a label should end here")


def _check(metric: Metric) -> None:
    if not metric.type:
        raise Malformed(f"{metric.name} has no type")
    if (metric.type == "counter") != metric.name.endswith("_total"):
        raise Malformed(f"{metric.name} is no name for a {metric.type}")
    if metric.type == "histogram":
        for rest, bounds in _buckets(metric):
            counts = [count for _, count in sorted(bounds.items())]
            total = metric.samples[f"{metric.name}_count", rest]
            if (
                counts != sorted(counts)
                or bounds[float("inf")] != total
                or (f"{metric.name}_sum", rest) not in (metric.samples)
            ):
                raise Malformed(f"{metric.name}: the buckets do not add up")


def _buckets(metric: Metric) -> Iterator[tuple[Labels, dict[float, float]]]:
    found: dict[Labels, dict[float, float]] = {}
    for (name, labels), value in metric.samples.items():
        if name.endswith("_bucket"):
            rest = frozenset((key, text) for key, text in labels if key != "le")
            found.setdefault(rest, {})[float(dict(labels)["le"])] = value
    yield from found.items()
