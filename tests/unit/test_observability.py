"""What the documentation and the dashboard say of metrics and fields, held against the code."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nvmeofd import metrics
from nvmeofd.errors import InUse
from nvmeofd.jobs import Job
from nvmeofd.log import about
from nvmeofd.metrics import FAMILIES, Family
from nvmeofd.model import OperationKind, VolumeState

DOCS = Path(__file__).parents[2] / "docs"
TEXT = (DOCS / "observability.md").read_text()
DASHBOARD: dict[str, Any] = json.loads((DOCS / "grafana-dashboard.json").read_text())
ROW = re.compile(r"\| `(nvmeofd_\w+)(?:\{([\w,]+)\})?` \| (\w+) \| (.+) \|")
# Labels that Prometheus adds, and the one of buckets.
OTHER_LABELS = {"instance", "le"}
VALUES = {
    "outcome": {*metrics.Outcome, "done", "refused", "deferred", "failed"},
    "state": {*metrics.JobState, *VolumeState, *metrics.PATH_STATES},
}
BY_NAME: dict[str, Family] = {
    f"{family.name}{suffix}": family
    for family in FAMILIES
    for suffix in (("_bucket", "_sum", "_count") if family.type == "histogram" else ("",))
}


def expressions() -> Iterator[str]:
    """Every one in PromQL: of the alerts, and of the dashboard."""
    found = re.findall(r"^ +expr: (.+)$", TEXT, re.MULTILINE)
    assert len(found) > 5
    yield from found
    for panel in DASHBOARD["panels"]:
        yield from (target["expr"] for target in panel["targets"])
    yield from (one["expr"] for one in DASHBOARD["annotations"]["list"])
    for variable in DASHBOARD["templating"]["list"]:
        if variable["type"] == "query":
            yield re.sub(r"label_values\((\w+), (\w+)\)", r"count by (\2) (\1)", variable["definition"])


def test_table_is_the_code() -> None:
    rows = {name: (kind, tuple(labels.split(",")) if labels else ()) for name, labels, kind, _ in ROW.findall(TEXT)}
    assert rows == {family.name: (family.type, family.labels) for family in FAMILIES}


def test_text_names_no_other_metric() -> None:
    names = set(re.findall(r"nvmeofd_\w+", TEXT))
    assert names <= set(BY_NAME) | {family.name for family in FAMILIES}


@pytest.mark.parametrize("expression", tuple(expressions()))
def test_expression_uses_what_there_is(expression: str) -> None:
    used = re.findall(r"(nvmeofd_\w+)(?:\{([^}]*)\})?", expression)
    assert used
    labels = set()
    for name, matchers in used:
        assert name in BY_NAME
        known = {*BY_NAME[name].labels, *OTHER_LABELS}
        labels |= known
        for label, value in re.findall(r'(\w+)[!=~]+"([^"]*)"', matchers):
            assert label in known
            assert label == "instance" or value in VALUES[label]
    for grouping in re.findall(r"(?:by|on) \(([^)]*)\)", expression):
        assert set(grouping.split(", ")) <= labels
    assert expression.count("(") == expression.count(")")
    assert expression.count("{") == expression.count("}")


@pytest.mark.parametrize("family", [family for family in FAMILIES if family.type == "counter"], ids=lambda f: f.name)
def test_dashboard_takes_counters_as_rates(family: Family) -> None:
    shown = [one for one in expressions() if family.name in one]
    assert shown, "a metric that no dashboard and no alert shows"
    for expression in shown:
        assert re.search(rf"(rate|increase)\({family.name}\b[^\[]*\[", expression)


class TestDashboard:
    def test_panels_do_not_overlap(self) -> None:
        taken: dict[tuple[int, int], str] = {}
        for panel in DASHBOARD["panels"]:
            place = panel["gridPos"]
            assert place["x"] + place["w"] <= 24
            for x in range(place["x"], place["x"] + place["w"]):
                for y in range(place["y"], place["y"] + place["h"]):
                    assert taken.setdefault((x, y), panel["title"]) == panel["title"]

    def test_numbers_are_unique(self) -> None:
        numbers = [panel["id"] for panel in DASHBOARD["panels"]]
        assert len(set(numbers)) == len(numbers)
        for panel in DASHBOARD["panels"]:
            names = [target["refId"] for target in panel["targets"]]
            assert len(set(names)) == len(names)

    def test_every_query_is_of_the_data_source_that_was_chosen(self) -> None:
        for panel in DASHBOARD["panels"]:
            for place in (panel, *panel["targets"]):
                assert place["datasource"]["uid"] == "${datasource}"
        assert [one["name"] for one in DASHBOARD["templating"]["list"]] == ["datasource", "instance"]

    def test_legends_name_labels_of_their_query(self) -> None:
        for panel in DASHBOARD["panels"]:
            for target in panel["targets"]:
                groups = {
                    label for group in re.findall(r"by \(([^)]*)\)", target["expr"]) for label in group.split(", ")
                }
                assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= groups


def test_fields_are_the_documented_ones() -> None:
    async def fields_of_a_job() -> dict[str, str]:
        return Job(OperationKind.STAGE, "", lambda _: asyncio.sleep(0), timeout=1).log_fields

    documented = set(re.findall(r"^\| `([A-Z_]+)` \|", TEXT, re.MULTILINE))
    assert {*asyncio.run(fields_of_a_job()), *InUse("").log_fields, *about()["log_fields"]} == documented
    for name in re.findall(r"\b([A-Z_]+)=", TEXT):
        assert name in {*documented, "SYSLOG_IDENTIFIER"}
