"""Queries the parts of the logging pipeline on one host and writes metrics for node exporter.

Run by a timer (roles/log_watch/files/shiftmaster-log-watch). A part that does not respond is 0 in its own
metric, and has no other metrics; the last metrics of an absent part would look current.
"""

from __future__ import annotations

import json
import os
import sys
import time
import uuid

from ..host.json_api import Api, Failed
from ..monitoring import metrics
from . import canary
from .elastic import cluster_health

HELP = {
    "shiftmaster_logstash_up": "Whether Logstash responds.",
    "shiftmaster_logstash_queue_bytes": "What its queue holds on the disk.",
    "shiftmaster_logstash_queue_max_bytes": "What its queue can hold.",
    "shiftmaster_logstash_events_out_total": "Events that Elasticsearch has taken, or rejected for good.",
    "shiftmaster_logstash_dead_letter_bytes": "What Elasticsearch has rejected for good.",
    "shiftmaster_filebeat_up": "Whether Filebeat responds.",
    "shiftmaster_filebeat_events_acknowledged_total": "Events that Logstash has taken.",
    "shiftmaster_elasticsearch_up": "Whether Elasticsearch responds.",
    "shiftmaster_elasticsearch_status": "Health of the cluster: 0 green, 1 yellow, 2 red.",
    "shiftmaster_elasticsearch_disk_used_ratio": "Share of the fullest node's disk that is used.",
    "shiftmaster_elasticsearch_shards_ratio": "Share of the shards that the cluster may have.",
    "shiftmaster_elasticsearch_lifecycle_errors": "Indexes whose lifecycle does not go on.",
    "shiftmaster_elasticsearch_ignored_events": "Events of the last day of which a field has another type.",
}
STATUS = {"green": 0, "yellow": 1, "red": 2}
SHARDS_PER_NODE = 1000


def of_logstash(api) -> dict:
    pipelines = api.call("/_node/stats/pipelines")["pipelines"]
    own = {name: found for name, found in pipelines.items() if not name.startswith(".")}
    queues = [found.get("queue") or {} for found in own.values()]
    letters = [found.get("dead_letter_queue") or {} for found in own.values()]
    return {
        "shiftmaster_logstash_queue_bytes": sum(found.get("queue_size_in_bytes", 0) for found in queues),
        "shiftmaster_logstash_queue_max_bytes": sum(found.get("max_queue_size_in_bytes", 0) for found in queues),
        "shiftmaster_logstash_events_out_total": sum(found["events"]["out"] for found in own.values()),
        "shiftmaster_logstash_dead_letter_bytes": sum(found.get("queue_size_in_bytes", 0) for found in letters),
    }


def of_filebeat(api) -> dict:
    events = api.call("/stats")["libbeat"]["output"]["events"]
    return {"shiftmaster_filebeat_events_acknowledged_total": events.get("acked", 0)}


def of_elasticsearch(api) -> dict:
    health = cluster_health(api)
    nodes = api.call("/_nodes/stats/fs")["nodes"].values()
    used = [1 - node["fs"]["total"]["available_in_bytes"] / node["fs"]["total"]["total_in_bytes"] for node in nodes]
    # The alias holds events of which a field was ignored; streams that are older than it have none.
    day = {"query": {"range": {"@timestamp": {"gte": "now-1d"}}}}
    ignored = api.call("/shiftmaster-ignored/_count?ignore_unavailable=true", "POST", day)["count"]
    errors = api.call("/logs-shiftmaster.*/_ilm/explain?only_errors=true")["indices"]
    may = SHARDS_PER_NODE * max(1, health["number_of_data_nodes"])
    return {
        "shiftmaster_elasticsearch_status": STATUS[health["status"]],
        "shiftmaster_elasticsearch_disk_used_ratio": round(max(used), 4),
        "shiftmaster_elasticsearch_shards_ratio": round(health["active_shards"] / may, 4),
        "shiftmaster_elasticsearch_lifecycle_errors": len(errors),
        "shiftmaster_elasticsearch_ignored_events": ignored,
    }


PARTS = {"logstash": of_logstash, "filebeat": of_filebeat, "elasticsearch": of_elasticsearch}


def queried(part: str, api) -> dict:
    """Return the metrics of a part; of one that does not respond as it should, only that."""
    up = "shiftmaster_%s_up" % part
    try:
        return {up: 1, **PARTS[part](api)}
    except (Failed, KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        print("%s: %s: %s" % (part, type(error).__name__, error), file=sys.stderr)
        return {up: 0}


def watched_line(config: dict) -> dict:
    """Return the metrics of the line that is written and looked for."""
    api = Api(config["url"], config["ca_file"], (config["user"], config["password"]), timeout=10)
    try:
        result = canary.measure(api, config["file"], config["stream"], uuid.uuid4().hex, config["timeout_seconds"])
    except (Failed, OSError, KeyError) as error:
        print("canary: %s: %s" % (type(error).__name__, error), file=sys.stderr)
        result = {"seconds": None, "count": 0}
    return canary.metrics(result, time.time())


def main(path: str) -> int:
    with open(path, encoding="utf-8") as stream:
        config = json.load(stream)
    found = {}
    for part, given in config["parts"].items():
        login = (given["user"], given["password"]) if given.get("user") else None
        values = queried(part, Api(given["url"], given.get("ca_file"), login, timeout=10))
        found.update(((name, ""), value) for name, value in values.items())
    # The parts first: the line may take its time.
    metrics.write(os.path.join(config["directory"], "shiftmaster_logging.prom"), HELP, found)
    if config.get("canary"):
        path = os.path.join(config["directory"], "shiftmaster_log_canary.prom")
        metrics.write(path, canary.HELP, watched_line(config["canary"]))
    return 0
