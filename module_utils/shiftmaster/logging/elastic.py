"""Compares what Elasticsearch and Kibana hold with what is wanted."""

from __future__ import annotations


def cluster_health(api):
    """Return the cluster's health. Yellow on a single node is green if each of our indices is.

    Yellow means that replicas alone are unassigned. Kibana creates indices with one, which a single node never assigns.
    """
    health = api.call("/_cluster/health?level=indices")
    own = [found["status"] for name, found in health["indices"].items() if "logs-shiftmaster." in name]
    if health["status"] == "yellow" and health["number_of_nodes"] == 1 and set(own) <= {"green"}:
        health["status"] = "green"
    return health


def lacks(wanted, present, path=""):
    """Return where what is there differs from what is wanted; what is there besides does not count.

    Elasticsearch returns numbers and booleans of settings as text, adds what it has by default, and writes
    {"index": {"codec": ...}} for {"index.codec": ...}.
    """
    if isinstance(wanted, dict):
        if not isinstance(present, dict):
            return [path or "."]
        wanted, present = nested(wanted), nested(present)
        found = []
        for key, value in wanted.items():
            where = "%s.%s" % (path, key) if path else key
            found += lacks(value, present[key], where) if key in present else [where]
        return found
    if isinstance(wanted, list):
        if not isinstance(present, list) or len(wanted) != len(present):
            return [path]
        return [
            where
            for number, (one, other) in enumerate(zip(wanted, present))
            for where in lacks(one, other, "%s[%d]" % (path, number))
        ]
    return [] if plain(wanted) == plain(present) else [path]


def plain(value):
    return ("true" if value else "false") if isinstance(value, bool) else str(value)


def nested(settings):
    """Return a mapping whose keys have no dots: {"a.b": 1} becomes {"a": {"b": 1}}."""
    found = {}
    for key, value in settings.items():
        *first, last = str(key).split(".")
        place = found
        for part in first:
            inner = place.get(part)
            if not isinstance(inner, dict):
                inner = place[part] = {}
            place = inner
        if isinstance(value, dict) and isinstance(place.get(last), dict):
            place[last] = {**place[last], **nested(value)}
        else:
            place[last] = nested(value) if isinstance(value, dict) else value
    return found
