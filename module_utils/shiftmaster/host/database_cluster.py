"""What a member of a PostgreSQL cluster reports by Patroni's REST API: its own role, and the state of the cluster."""

from __future__ import annotations

import json
import time

from . import probe

API = "https://localhost:8008"
# Patroni compares itself with etcd every few seconds; older than this, etcd has no majority that it reaches.
ETCD_SECONDS = 20


def _get(path: str, ca_file: str, seconds: float) -> dict:
    """Return the JSON of a response, whatever its status; ProbeError where there is none."""
    result = probe.http_get(API, path, timeout=seconds, ca_file=ca_file)
    if result.status is None:
        raise probe.ProbeError("down", result.reason or "refused", "Patroni: %s" % result.error)
    try:
        found = json.loads(result.body)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise probe.ProbeError("unhealthy", "protocol", "Patroni's response is no JSON object")
    return found


def _text(value) -> str:
    return value[:100] if isinstance(value, str) else ""


def state(ca_file: str, seconds: float = 5.0, now=None) -> dict:
    """Return what this member reports; ProbeError where its Patroni does not respond.

    role and state of PostgreSQL here, the cluster's primary, its synchronous standbys, members with their states and
    timelines, whether automatic failover is paused, and for how many seconds etcd has not been reached.
    """
    own, cluster = _get("/patroni", ca_file, seconds), _get("/cluster", ca_file, seconds)
    members = [
        dict({name: _text(one.get(name)) for name in ("name", "role", "state")}, timeline=one.get("timeline"))
        for one in cluster.get("members") or []
        if isinstance(one, dict)
    ]
    primaries = [one["name"] for one in members if one["role"] == "leader" and one["state"] == "running"]
    seen = own.get("dcs_last_seen")
    silent = (now or time.time()) - seen if isinstance(seen, (int, float)) and seen else None
    return {
        "role": _text(own.get("role")),
        "state": _text(own.get("state")),
        "primary": primaries[0] if len(primaries) == 1 else "",
        "synchronous": sorted(one["name"] for one in members if one["role"] in ("sync_standby", "quorum_standby")),
        "members": sorted(members, key=lambda one: one["name"]),
        "paused": bool(own.get("pause") or cluster.get("pause")),
        "restart_pending": bool(own.get("pending_restart")),
        "etcd_seconds": silent,
        "etcd": silent is None or silent <= ETCD_SECONDS,
    }
