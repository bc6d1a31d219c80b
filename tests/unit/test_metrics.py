"""The table of metrics, its page and the dashboard have the same names."""

from __future__ import annotations

import json
import re
from pathlib import Path

from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from kernelbridge.metrics import PREFIX, Metrics, Snapshot
from tests.unit.test_docs import in_code, reference, rows

DOCS = Path(__file__).parents[2] / "docs"


def families() -> dict[str, tuple[str, frozenset[str]]]:
    """Return the type and the labels of each metric, by the name with which queries begin."""
    metrics = Metrics("local")
    metrics.refused("bad_request")
    metrics.watch(lambda: Snapshot(sessions={"active": 1}))
    found = {}
    for family in text_string_to_metric_families(generate_latest(metrics.registry).decode()):
        if family.name.endswith("_created"):
            continue
        name = family.name + ("_total" if family.type == "counter" else "")
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        found[name] = (family.type, frozenset(labels))
    return found


def test_every_metric_has_the_prefix_and_a_base_unit() -> None:
    names = families()
    assert len(names) > 20
    for name, (kind, _) in names.items():
        assert name.startswith(f"{PREFIX}_")
        assert not re.search(r"_(ms|milliseconds|kb|mb|percent)(_|$)", name)
        if kind == "histogram":
            assert name.endswith("_seconds")


def test_the_page_has_every_metric_with_its_type_and_labels() -> None:
    table = rows(reference("metrics.md"))[2:]
    page = {
        in_code(name)[0]: (kind, frozenset(in_code(labels)))
        for name, kind, labels, *_ in (row for row in table if len(row) == 4)
        if in_code(name) and in_code(name)[0].startswith(PREFIX)
    }
    assert page == families()


def test_the_dashboard_names_only_metrics_that_exist_and_shows_all_of_them() -> None:
    dashboard = json.loads((DOCS / "grafana" / "kernelbridge.json").read_text(encoding="utf-8"))
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    expressions += [each["query"]["query"] for each in dashboard["templating"]["list"] if each["type"] == "query"]
    named = {found for expression in expressions for found in re.findall(rf"{PREFIX}_\w+", expression)}
    known = {
        f"{name}{suffix}": name
        for name, (kind, _) in families().items()
        for suffix in (("_bucket", "_count", "_sum") if kind == "histogram" else ("",))
    }
    assert named <= known.keys()
    shown = {known[name] for name in named}
    unshown = {f"{PREFIX}_process_start_time_seconds", f"{PREFIX}_process_virtual_memory_bytes"}
    assert shown == families().keys() - unshown
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            labels = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
            (name, *_) = re.findall(rf"{PREFIX}_\w+", target["expr"])
            assert labels <= families()[known[name]][1], target["expr"]


def test_the_alarms_of_the_guide_name_metrics_that_exist() -> None:
    text = (DOCS / "how-to" / "monitoring.md").read_text(encoding="utf-8")
    named = set(re.findall(rf"{PREFIX}_[a-z_]+", text))
    known = families().keys() | {f"{name}_bucket" for name, (kind, _) in families().items() if kind == "histogram"}
    assert len(named) > 5
    assert named <= known


def test_each_server_has_a_table_of_its_own() -> None:
    one, two = Metrics(), Metrics()
    one.refused("bad_request")
    assert b'code="bad_request"' in generate_latest(one.registry)
    assert b'code="bad_request"' not in generate_latest(two.registry)
