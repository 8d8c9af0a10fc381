"""What other pages take from a record: a badge, and the results of a model card."""

from __future__ import annotations

import json

from jinja2 import Environment

from robust.leaderboard.layout import markdown_text, percent
from robust.leaderboard.record import Record
from robust.leaderboard.trust import reasons, shown_trust

_COLOURS = {"trusted": "blue", "suspect": "yellow", "unreliable": "lightgrey", "unknown": "lightgrey"}


def badge(record: Record) -> str:
    """The JSON of a shields.io endpoint badge."""
    rate = record.robust
    message = f"{percent(rate.value)} % [{percent(rate.low)}, {percent(rate.high)}]"
    if (trust := shown_trust(record)) != "trusted":
        message = trust if trust == "unreliable" else f"{message}, {trust}"
    content = {
        "schemaVersion": 1,
        "label": f"robust {record.threat.norm}:{record.threat.eps}",
        "message": message,
        "color": _COLOURS[trust],
    }
    return json.dumps(content, indent=1) + "\n"


def model_card(record: Record, environment: Environment) -> str:
    """A fragment of a model card: evaluation results as the hub reads them, and a table for people."""
    values = {
        f"{prefix}{end}": percent(getattr(rate, end))
        for prefix, rate in (("clean_", record.clean), ("", record.robust))
        for end in ("low", "high")
    }
    environment.filters.setdefault("md", markdown_text)
    return environment.get_template("card.md").render(
        record=record,
        name=f"{record.model.name} + {record.defense.name}",
        threat=f"{record.threat.norm}:{record.threat.eps}",
        trust=shown_trust(record),
        checks=", ".join(reasons(record)),
        clean=percent(record.clean.value),
        robust=percent(record.robust.value),
        **values,
    )
