"""Filter `runbook_links`."""

from __future__ import annotations

import json


def without_runbooks(value):
    """An object of the model whose lists of links lead nowhere else."""
    for key, item in value.items():
        if isinstance(item, list):
            value[key] = [
                one for one in item if not (isinstance(one, dict) and "${runbook_url_base}" in str(one.get("url")))
            ]
    return value


def runbook_links(text, url_base):
    """Return a dashboard (JSON) in which the address stands for @RUNBOOK_URL_BASE@.

    Without an address each link to a runbook is removed: it would lead to a page of Grafana that does not exist.
    """
    if url_base:
        return text.replace("@RUNBOOK_URL_BASE@", json.dumps(url_base.rstrip("/"))[1:-1])
    return json.dumps(json.loads(text, object_hook=without_runbooks), ensure_ascii=False, indent=1) + "\n"


class FilterModule:
    def filters(self):
        return {"runbook_links": runbook_links}
