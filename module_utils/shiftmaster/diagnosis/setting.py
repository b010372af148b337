"""What a host is meant to be, and the table of what is collected there."""

from __future__ import annotations

import json
import os
import re

from ..host import envfile, safe_files
from ..release.layout import Layout
from . import application, database, disk, history, host, logs, network, services, upkeep
from .engine import Part
from .redact import secrets_of

AREAS = ("app", "db", "cpu", "memory", "disk", "network")
_ALL = AREAS
# What each part looks at, the areas that select it, how long it may take, on which hosts. The operations guide's
# commands are among them: docs/diagnosis.md has the table.
PARTS = {
    "cpu": Part(host.cpu, ("app", "cpu"), 5),
    "memory": Part(host.memory, ("app", "memory", "cpu"), 5),
    "kills": Part(host.kills, ("app", "memory"), 5),
    "files": Part(host.files, ("app", "disk"), 5),
    "kernel": Part(host.kernel, ("cpu", "memory", "disk", "network"), 5),
    "clock": Part(host.clock, ("app", "network"), 5),
    # Small, and the root of nearly everything: always.
    "disk": Part(disk.disk, _ALL, 6),
    "deleted": Part(disk.deleted, ("disk",), 5),
    "largest": Part(disk.largest, ("disk",), 5),
    "rotation": Part(disk.rotation, ("disk",), 3),
    "traffic": Part(disk.traffic, ("disk", "cpu"), 4),
    "units": Part(services.units, _ALL, 10),
    "journal": Part(services.journal, ("app", "db"), 6),
    "changes": Part(services.changes, _ALL, 9),
    "packages": Part(services.packages, ("app",), 9),
    # For the charts and the timeline, whatever is queried.
    "history": Part(history.history, _ALL, 6),
    "containers": Part(services.containers, ("app",), 5),
    "logs": Part(logs.logs, ("app", "db"), 6),
    "requests": Part(logs.requests, ("app", "cpu", "network"), 5, ("web", "app")),
    "ports": Part(network.ports, ("app", "db", "network"), 5),
    "firewall": Part(network.firewall, ("app", "db", "network"), 5),
    "routes": Part(network.routes, ("app", "db", "network"), 4),
    "names": Part(network.names, ("app", "network"), 6),
    "certificates": Part(network.certificates, ("app", "network"), 6),
    "http": Part(network.http, ("app", "network"), 6, ("web", "app")),
    "peers": Part(network.peers, ("app", "db", "network"), 5),
    "nginx": Part(network.nginx, ("app", "network"), 3, ("web", "app")),
    "database": Part(database.database, ("app", "db", "cpu"), 9, ("database", "standby")),
    "clusters": Part(database.clusters, ("app", "db", "disk"), 3, ("database", "standby")),
    "cluster": Part(database.cluster, ("app", "db"), 6, ("database",)),
    "login": Part(database.login, ("app", "db"), 6, ("app",)),
    "release": Part(application.release, _ALL, 6, ("app",)),
    "environment": Part(application.environment, ("app", "db"), 3, ("app",)),
    "rights": Part(application.rights, ("app", "disk"), 3, ("app",)),
    "static": Part(application.static, ("app",), 6, ("app",)),
    "redis": Part(application.redis, ("app", "memory"), 9, ("app",)),
    "cache_server": Part(application.cache_server, ("app", "memory"), 5, ("cache",)),
    "members": Part(network.members, ("app", "network"), 5, ("cache",)),
    "virtual_address": Part(network.virtual_address, ("app", "network"), 4, ("web",)),
    "celery": Part(application.celery, ("app",), 4, ("app",)),
    "logins": Part(upkeep.logins, ("checklist",), 8),
    "updates": Part(upkeep.updates, ("checklist",), 14),
    "rights_changed": Part(upkeep.rights_changed, ("checklist",), 6),
    "accounts": Part(upkeep.accounts, ("checklist",), 8, ("database",)),
    "backups": Part(upkeep.backups, ("checklist",), 6, ("backup",)),
    "monitoring": Part(upkeep.monitoring, ("checklist",), 12, ("monitoring",)),
}
# Queried only where another part gives a reason.
SUSPICION = {"workers_respond": Part(application.workers_respond, ("app",), 14, ("app",))}


class Setting:
    """Where things are on this host; every collector reads it, none changes it."""

    def __init__(self, options: dict, root: str = "/"):
        self.root = root
        self.proc = options.get("proc_path") or "/proc"
        self.cgroup = options.get("cgroup_path") or "/sys/fs/cgroup"
        self.functions = tuple(options.get("functions") or ())
        self.app_root = (options.get("app_root") or "/var/www/shiftmaster").rstrip("/")
        self.user = options.get("app_user") or "shiftmaster"
        self.web_user = options.get("web_user") or ""
        self.log_dir = options.get("log_dir") or "/var/log/shiftmaster"
        self.environment_file = options.get("environment_file")
        self.environment_keys = options.get("environment_keys") or {}
        expected = options.get("expected_values") or {}
        self.required_names = tuple(
            dict.fromkeys([*(name for name in expected if expected[name]), *(options.get("required_names") or ())])
        )
        # As role shiftmaster writes them.
        self.expected_values = {
            name: value if isinstance(value, str) else json.dumps(value) for name, value in expected.items()
        }
        self.domain = options.get("domain") or "localhost"
        self.hours = float(options.get("hours") or 6)
        self.database = options.get("database") or "shiftmaster"
        self.postgres_socket = "/var/run/postgresql"
        self.postgres_port = int(options.get("postgres_port") or 5432)
        self.broker_key = "CELERY_BROKER_URL"
        self.cache_key = "CACHE_URL"
        self.cluster_ca_file = options.get("cluster_ca_file") or ""
        self.queues = tuple(options.get("queues") or ("celery",))
        self.celery_application = options.get("celery_application") or ""
        self.redis_ports = [(int(port), bool(tls)) for port, tls in options.get("redis_ports") or ()]
        self.sentinel_port = int(options.get("sentinel_port") or 0)
        self.sentinel_ca_file = options.get("sentinel_ca_file") or "/etc/ssl/shiftmaster/ca.crt"
        self.virtual_address = options.get("virtual_address") or ""
        self.slot = Layout(self.app_root).active_slot()
        # Without a live slot no unit of one can be expected; that is a finding of its own.
        self.units = tuple(
            name.replace("{slot}", self.slot or "")
            for name in options.get("units") or ()
            if self.slot or "{slot}" not in name
        )
        self.ports = {int(port): program for port, program in (options.get("ports") or {}).items()}
        self.peers = list(options.get("peers") or ())
        self.remote_ports = sorted({int(peer["port"]) for peer in self.peers})
        self.names = list(dict.fromkeys(options.get("names") or ["localhost"]))
        self.certificates = list(options.get("certificates") or ())
        self.http_targets = options.get("http") or {}
        self.static_url = options.get("static_url") or ""
        self.backup_dir = options.get("backup_dir") or "/var/backups/shiftmaster"
        self.prometheus = options.get("prometheus") or None
        self.access_log = options.get("access_log") or "/var/log/nginx/shiftmaster_access.log"
        self.logs = options.get("logs") or {
            # Values of its server, and its own: where its logs are collected, and by its own settings.
            "application": [os.path.join(self.log_dir, name) for name in ("error.log", "app.log")]
            + [os.path.join(self.app_root, "shared", "logs", "*.log")],
            "celery": os.path.join(self.log_dir, "celery.log"),
            "beat": os.path.join(self.log_dir, "celery-beat.log"),
            "nginx": "/var/log/nginx/error.log",
            "postgresql": "/var/log/postgresql/*.log",
            "redis": "/var/log/redis/redis-server*.log",
        }
        large = "/tmp /var/tmp /var/cache /var/log /var/lib/postgresql /var/backups".split()
        self.large_dirs = options.get("large_dirs") or [*large, self.app_root]
        # Who writes where: what a full filesystem stops.
        writers = {"logs": self.log_dir, "application": self.app_root, "system": "/var/log", "temporary": "/tmp"}
        if {"database", "standby"} & set(self.functions):
            writers["postgresql"] = "/var/lib/postgresql"
        if "cache" in self.functions:
            writers["redis"] = "/var/lib/redis"
        self.writers = {name: path for name, path in writers.items() if os.path.isdir(path)}
        self._secrets = None

    def path(self, path: str) -> str:
        return path if self.root == "/" else os.path.join(self.root, path.lstrip("/"))

    def is_ours(self, unit: str) -> bool:
        return bool(_OURS.match(unit))

    def mentions_ours(self, text: str) -> bool:
        return bool(_OUR_MESSAGES.search(text))

    def secrets(self) -> list:
        """Return the values that must not leave the host; read once."""
        if self._secrets is None:
            self._secrets = []
            if self.environment_file:
                try:
                    self._secrets = secrets_of(envfile.parse(safe_files.read_text(self.environment_file)))
                except (OSError, ValueError):
                    pass
        return self._secrets


_OURS = re.compile(
    r"(shiftmaster|nginx|postgresql|redis|chrony|systemd-timesyncd|nftables|prometheus|alertmanager|grafana|mtail|cron|ssh)"
)
_OUR_MESSAGES = re.compile(r"(?i)shiftmaster|nginx|postgres|redis|nftables|celery|docker")


def suspicions(evidence: dict) -> bool:
    """Return whether tasks wait although a worker runs, in the broker or in the worker itself."""
    broker = evidence.get("redis", {}).get("broker", {})
    later = sum((broker.get("queues_later") or {}).values())
    # A queue that gets shorter is worked on.
    stays = later > 0 and later >= sum((broker.get("queues") or {}).values())
    return stays or bool(broker.get("held"))
