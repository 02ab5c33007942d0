"""What packaging/ ships for Prometheus and Grafana asks for figures that exist."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from castling.control.metrics import END_METRICS, STREAM_METRICS

PACKAGING = Path(__file__).parents[2] / "packaging"
EXISTING = {figure.name + ("_total" if figure.counter else "") for figure in (*STREAM_METRICS, *END_METRICS)}


def unknown(text: str) -> set[str]:
    return set(re.findall(r"\bcastling_\w+", text)) - EXISTING


@pytest.mark.parametrize("name", ["alerts.yaml", "grafana.json"])
def test_every_metric_named_exists(name: str) -> None:
    text = (PACKAGING / name).read_text(encoding="utf-8")
    assert unknown(text) == set()
    assert len(set(re.findall(r"\bcastling_\w+", text))) >= 8, "it names some, so the above means something"


def test_a_metric_that_does_not_exist_would_be_noticed() -> None:
    assert unknown("castling_rpo_seconds > 1 or castling_speed > 2") == {"castling_speed"}


def test_the_dashboard_is_whole() -> None:
    found = json.loads((PACKAGING / "grafana.json").read_text(encoding="utf-8"))
    assert len({panel["id"] for panel in found["panels"]}) == len(found["panels"]) >= 10
    assert all(panel["targets"][0]["expr"] for panel in found["panels"])


def test_every_alert_says_how_grave_it_is_and_of_what_it_speaks() -> None:
    text = (PACKAGING / "alerts.yaml").read_text(encoding="utf-8")
    alerts = text.split("- alert: ")[1:]
    assert len(alerts) >= 10
    for alert in alerts:
        assert "expr:" in alert and "severity:" in alert and "summary:" in alert, alert
