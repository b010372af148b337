"""Filter `without_alerts`."""

from __future__ import annotations

import yaml


def without_alerts(text, names):
    """Return a file of Prometheus' rules without some of its alerts, as it was where it has none of them.

    The rules are written for a complete site. An alert about an absent part always fires where that part is not
    wanted.
    """
    content = yaml.safe_load(text)
    rules = [rule for group in content["groups"] for rule in group["rules"]]
    if not any(rule.get("alert") in names for rule in rules):
        return text
    for group in content["groups"]:
        group["rules"] = [rule for rule in group["rules"] if rule.get("alert") not in names]
    content["groups"] = [group for group in content["groups"] if group["rules"]]
    return yaml.safe_dump(content, allow_unicode=True, sort_keys=False, width=1000)


class FilterModule:
    def filters(self):
        return {"without_alerts": without_alerts}
