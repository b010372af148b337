"""Evidence for the checklists: what goes wrong slowly, or is only looked at now and then."""

from __future__ import annotations

import contextlib
import os
import re
import time

from ..backup import manifest as backup_manifest
from ..host import probe
from ..monitoring import host_metrics
from ..monitoring.prometheus import PrometheusError
from .database import run_queries
from .history import prometheus_of
from .host import journal


def logins(setting) -> dict:
    """Log-ins that failed at ssh in a day, and at the application by the web server's log."""
    programs = ["--identifier=" + name for name in ("sshd", "sshd-session", "sudo", "su")]
    options = ["--output=cat", "--since=-24h", "--lines=5000", "--grep=" + _FAILED_LOGIN]
    return parse_logins(journal(options + programs, 6.0))


# One line for each attempt: at ssh the name, PAM's complaint and the password are three of the same.
_FAILED_LOGIN = r"Failed (password|keyboard-interactive)|pam_unix\((sudo|su|su-l):auth\): authentication failure"


def parse_logins(text: str) -> dict:
    """Return how many failed, and from where most came."""
    sources = {}
    lines = [line for line in text.splitlines() if re.search(_FAILED_LOGIN, line)]
    for line in lines:
        match = re.search(r"(?:from|rhost=)\s*([0-9a-fA-F.:]{3,})", line)
        if match:
            sources[match.group(1)] = sources.get(match.group(1), 0) + 1
    top = sorted(sources.items(), key=lambda one: -one[1])[:5]
    return {"failed": len(lines), "sources": [{"address": address, "count": count} for address, count in top]}


def updates(setting) -> dict:
    """Upgrades that wait, by this host's last index of its repositories."""
    fetched = host_metrics.package_lists_timestamp(setting.path)
    return dict(
        host_metrics.pending_updates(),
        heard_hours_ago=fetched and round((time.time() - fetched) / 3600.0, 1),
        reboot_required=os.path.exists(setting.path("/run/reboot-required")),
    )


# These tables are the application's, and the query is a superuser's. TABLESAMPLE accepts no view; format() reads a
# value of any type by the function of the type, where an operator or a cast could be the application's own.
ACCOUNTS_SQL = {
    "inactive": (
        "SELECT count(*) FILTER (WHERE is_active) AS active, count(*) FILTER (WHERE is_active AND "
        "coalesce(last_login, date_joined) < now() - interval '90 days') AS unused FROM (SELECT "
        "format('%s', is_active) = 't' AS is_active, nullif(format('%s', last_login), '')::timestamptz AS last_login, "
        "nullif(format('%s', date_joined), '')::timestamptz AS date_joined "
        "FROM ONLY public.auth_user TABLESAMPLE SYSTEM (100)) AS users"
    ),
    "changed": (
        "SELECT count(*) AS count FROM ONLY public.django_admin_log l TABLESAMPLE SYSTEM (100) "
        "JOIN ONLY public.django_content_type c TABLESAMPLE SYSTEM (100) "
        "ON format('%s', c.id) = format('%s', l.content_type_id) WHERE format('%s', c.app_label) = 'auth' "
        "AND nullif(format('%s', l.action_time), '')::timestamptz > now() - interval '1 day'"
    ),
}


def accounts(setting) -> dict:
    """Users of the application that nobody has used for 90 days, and rights that were changed in a day."""
    results, errors = run_queries(setting, setting.database, ACCOUNTS_SQL, 6.0)
    return {
        "users": (results.get("inactive") or [None])[0],
        "rights_changed": results["changed"][0]["count"] if results.get("changed") else None,
        "errors": errors,
    }


_CHANGERS = ("useradd", "usermod", "userdel", "groupmod", "gpasswd", "passwd", "chpasswd")
_RIGHTS = re.compile(r"\b(%s|visudo)\b" % "|".join(_CHANGERS))


def rights_changed(setting) -> dict:
    """Accounts and groups of the host that were changed in a day."""
    programs = ["--identifier=" + name for name in _CHANGERS]
    text = journal(["--output=short-iso", "--since=-24h", "--lines=200", *programs], 5.0)
    recent = []
    for path in ("/etc/passwd", "/etc/group", "/etc/sudoers"):
        with contextlib.suppress(OSError):
            if time.time() - os.stat(setting.path(path)).st_mtime < 86400:
                recent.append(path)
    return {"events": [line[:200] for line in text.splitlines() if _RIGHTS.search(line)][-10:], "files": recent}


def backups(setting) -> dict:
    """The content of role backup's manifests: each part's last good backup, and when the database was last restored as a verification."""
    history = backup_manifest.history(os.path.join(setting.path(setting.backup_dir), "manifests"))
    return dict(parse_backups(history.manifests, time.time()), unreadable=history.problems)


def parse_backups(manifests: list, now: float) -> dict:
    """Return of each part {name, daily, hours_ago, bytes, failed} (None where it was never good), and the last verification's age."""

    def hours_ago(timestamp):
        return round((now - backup_manifest.seconds_of(timestamp)) / 3600.0, 1)

    parts, verified = {}, None
    for manifest in manifests:
        for name, part in manifest["parts"].items() if manifest["ended"] else ():
            if part["result"] == "skipped":
                continue
            daily = name not in backup_manifest.WITHOUT_AGE
            found = parts.setdefault(name, {"name": name, "daily": daily, "hours_ago": None, "bytes": None})
            found["failed"] = part["result"] not in backup_manifest.GOOD
            if not found["failed"]:
                found.update(hours_ago=hours_ago(part["ended"]), bytes=part["size_bytes"])
            for item in part["verified"]:
                if name == "database" and item["how"] == backup_manifest.RESTORED and item["good"]:
                    verified = hours_ago(item["at"])
    return {"parts": list(parts.values()), "verified_hours_ago": verified}


# The filesystems that the alerts watch (monitoring/alerts/host.yml).
_DISKS = '{fstype!~"tmpfs|ramfs|squashfs|iso9660|erofs"}'


def monitoring(setting) -> dict:
    """What Prometheus reports about the night, of a week, and of itself."""
    server = prometheus_of(setting, 8.0)
    try:
        alerts = server.now(
            'max by (alertname, instance, severity) (max_over_time(ALERTS{alertstate="firing",severity!="none"}[14h]))'
        )
        down = server.now("up == 0")
        keys = {"name": "alertname", "instance": "instance", "severity": "severity"}
        alerts = [{key: labels.get(label) for key, label in keys.items()} for labels, _value in alerts]
        return {
            "alerts": sorted(alerts, key=lambda one: (one["severity"] or "", one["name"] or ""))[:40],
            "watchdog": bool(server.now('ALERTS{alertname="Watchdog",alertstate="firing"}')),
            "targets": len(server.now("up")),
            "targets_down": ["%s %s" % (labels.get("job"), labels.get("instance")) for labels, _value in down][:20],
            "week": {
                "p95_seconds": server.value(
                    'histogram_quantile(0.95, sum by (le) (increase(nginx_http_request_duration_seconds_bucket{job="mtail",site="edge"}[7d])))'
                ),
                "disk_growth_percent": server.value(
                    "100 * max(node_filesystem_avail_bytes%s offset 7d / node_filesystem_size_bytes%s offset 7d "
                    "- node_filesystem_avail_bytes%s / node_filesystem_size_bytes%s)" % (4 * (_DISKS,))
                ),
                "full_in_days": server.value(
                    "min((node_filesystem_avail_bytes%s / -deriv(node_filesystem_avail_bytes%s[7d])) > 0) / 86400"
                    % (_DISKS, _DISKS)
                ),
                "requests": server.value('sum(increase(nginx_http_requests_total{job="mtail",site="edge"}[7d]))'),
                "requests_before": server.value(
                    'sum(increase(nginx_http_requests_total{job="mtail",site="edge"}[7d] offset 7d))'
                ),
            },
        }
    except PrometheusError as error:
        raise probe.ProbeError("down", "prometheus", str(error))
