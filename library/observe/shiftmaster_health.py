#!/usr/bin/python
"""Check the health of a ShiftMaster host."""

from __future__ import annotations

DOCUMENTATION = r"""
module: shiftmaster_health
short_description: Check the health of a ShiftMaster host
description:
  - Runs all O(checks) at the same time, each within its own time limit, and returns their results as data and as the
    report of the operations guide.
  - The module takes as long as its slowest check may take, and a second at most; a check that hangs is given up.
  - It reads only. It never fails because something is unhealthy; look at RV(worst) or RV(failing).
  - Passwords are read on the host from O(environment_file), and never pass through the task's parameters.
options:
  checks:
    description:
      - What to check. Each entry has O(checks[].name), O(checks[].kind) and options of that kind.
      - C({slot}) in a C(url), a unit, O(checks[].release_dir) or O(checks[].worker_pattern) stands for the live slot,
        C({app_root}) for O(app_root), and C({node}) for the host's own name.
    type: list
    elements: dict
    default: []
    suboptions:
      name: {type: str, required: true, description: "The name in the report, where it appears in capitals. Unique in
        the list."}
      kind:
        description:
          - V(http) gets a URL, over TCP, TLS or a unix socket; thresholds are the latency in milliseconds.
          - V(pages) gets O(checks[].pages) from O(checks[].url) as users do, and counts the failed requests of the last
            5 minutes in O(checks[].access_log).
          - V(deep_health) queries the application's own deep health endpoint, and evaluates its parts.
          - V(migrations) queries that endpoint whether the database has every migration of the live release.
          - V(tcp) opens a connection.
          - V(postgres) logs in and runs a query; thresholds are the percentage of connections in use.
          - V(database_cluster) queries Patroni of this host for its role, the primary, the synchronous standby and
            etcd.
          - V(redis) logs in and sends PING; thresholds are the percentage of memory in use where nothing may be
            evicted. A server that cannot save to disk is V(critical).
          - V(sentinel) queries Redis Sentinel whether a majority can replace the primary, and Redis of this host for
            its role.
          - V(virtual_address) looks whether exactly one host has O(checks[].address).
          - V(celery) pings the workers with the live release's own C(celery).
          - V(systemd) looks at units.
          - V(disk) looks at every real filesystem, its space and its inodes; thresholds are percentages.
          - V(memory) evaluates by C(MemAvailable); thresholds are percentages.
          - V(certificate) reads the expiry of a file, of what a server shows, or of both, and compares them; thresholds
            are days left.
          - V(clock) queries chrony or timedatectl; thresholds are seconds of offset. In a container the clock is not
            checked.
          - V(release) looks at the live release, at an unfinished deploy, and at the maintenance page.
          - V(maintenance) looks at the maintenance page alone, for hosts that have no release.
        type: str
        required: true
        choices: [http, pages, deep_health, migrations, tcp, postgres, database_cluster, redis, sentinel,
          virtual_address, celery, systemd, disk, memory, certificate, clock, release, maintenance]
      timeout_seconds: {type: float, description: "The limit of one attempt. The default is 30 for V(celery), and 10 for
        all others."}
      retries: {description: How many failed attempts may be followed by another., type: int, default: 0}
      delay_seconds: {description: The wait between attempts., type: float, default: 1}
      consecutive_successes: {description: How many attempts in a row must succeed., type: int, default: 1}
      warning: {type: float, description: "Above this the status is V(warning) (below it for V(certificate)). The
        default is 80 where the unit is a percentage, 30 days for V(certificate), 0.1 s for V(clock), and none for
        V(http)."}
      critical: {type: float, description: "Above this the status is V(critical) (below it for V(certificate)). The
        default is 90 where the unit is a percentage, 7 days for V(certificate), 1 s for V(clock), and none for
        V(http)."}
      enabled: {type: bool, default: true, description: Whether to make this check; for lists that are put together from
        variables.}
      unit: {description: The systemd unit that the hint names., type: str}
      log_file: {description: The log file that the hint names., type: str}
      hint: {description: Replaces the hint., type: str}
      url:
        description:
          - For V(http), V(deep_health) and V(migrations) C(unix:/path/of/socket) or C(http(s)://host:port), with a path
            if that is not given by O(checks[].path).
          - For V(certificate) C(host:port) of the TLS server.
          - The default is the live release's private socket for V(deep_health) and V(migrations).
        type: str
      path: {description: The path of the URL., type: str}
      host_header: {description: "The Host header, and the server name for TLS.", type: str}
      headers: {description: More headers. Not for secrets., type: dict}
      expected_status: {description: The HTTP statuses that are healthy., type: list, elements: int, default: [200]}
      pages: {description: "For V(pages), the paths. The default is C(/).", type: list, elements: str, default: []}
      access_log: {description: "For V(pages), nginx's JSON access log.", type: path}
      body_contains: {description: A text that the response must contain in its first 64 KiB., type: str}
      validate_certs: {type: bool, default: true, description: Whether V(http) and V(redis) check the server's
        certificate.}
      ca_file: {description: The certification authorities to trust instead of the system's., type: path}
      parts: {type: list, elements: str, default: [], description: The parts that V(deep_health) requests and evaluates;
        all if empty.}
      host: {type: str, description: "The host for V(tcp), V(redis) and V(postgres), where a directory means the unix
        socket in it."}
      port: {description: "The port for V(tcp), V(redis) and V(postgres).", type: int}
      socket: {description: "A unix socket instead of host and port, for V(tcp) and V(redis).", type: path}
      tls: {type: bool, default: false, description: "Whether V(redis) speaks TLS, where the address does not come from
        the environment file."}
      set: {type: str, default: shiftmaster, description: "The name of the replicated set, for V(sentinel)."}
      redis_port: {type: int, description: "The TLS port of this host's Redis, for V(sentinel)."}
      address: {type: str, description: "The address without its prefix length, for V(virtual_address)."}
      allow_noauth: {type: bool, default: false, description: Whether a V(redis) that requires a password counts as
        healthy; for hosts without one.}
      environment_key: {type: str, description: "The variable of O(environment_file) that holds the address for
        V(redis), such as C(CACHE_URL)."}
      database: {description: "The database for V(postgres), instead of the environment file's.", type: str}
      user: {description: "The role for V(postgres), instead of the environment file's.", type: str}
      sslmode: {description: "The TLS mode for V(postgres), instead of the environment file's.", type: str}
      run_as: {type: str, description: "A system user that C(psql) runs as, by peer authentication; the environment file
        is not read then."}
      application: {description: "The Celery application, as C(celery -A) takes it.", type: str, default: shiftmaster}
      release_dir: {description: The release whose C(celery) pings; the live one by default., type: path}
      worker_pattern: {type: str, default: "*", description: A shell pattern of the worker names that count. The check
        is faster when it is one name.}
      min_workers: {description: How many workers must respond., type: int, default: 1}
      queues: {description: "Queues that a responding worker must take tasks from, for V(celery).", type: list,
        elements: str, default: []}
      units: {type: list, elements: str, default: [], description: "Units that must be active. Of the units that match a
        pattern (C(*), C(?)) only those that failed are wrong, since an idle slot is stopped on purpose."}
      paths: {type: list, elements: path, default: [], description: "Look at the filesystems of these directories only,
        for V(disk)."}
      exclude: {type: list, elements: str, default: [], description: "Shell patterns of mount points to leave out, for
        V(disk)."}
      file: {description: The PEM file for V(certificate)., type: path}
      server_name: {description: "The server name for TLS, for V(certificate).", type: str}
      verify_chain: {type: bool, default: false, description: Whether V(certificate) also checks names and chain of what
        the server shows.}
  environment_file: {type: path, description: "The environment file of a release (systemd's format), read on the host as
    root for addresses and passwords of V(postgres) and V(redis), and for the token of the deep health endpoint."}
  environment_keys:
    description: The names of variables in O(environment_file), where an application uses others.
    type: dict
    suboptions:
      database_url: {type: str, default: DATABASE_URL, description: "A C(postgresql://) address; where it is set, the
        other database variables are not read."}
      database_name: {description: The variable with the database's name., type: str, default: DB_NAME}
      database_user: {description: The variable with the role., type: str, default: DB_USER}
      database_password: {description: The variable with the role's password., type: str, default: DB_PASSWORD}
      database_host: {description: "The variable with the host, or several with commas.", type: str, default: DB_HOST}
      database_port: {description: The variable with the port., type: str, default: DB_PORT}
      database_sslmode: {description: The variable with libpq's C(sslmode)., type: str, default: DB_SSLMODE}
      database_sslrootcert: {type: str, default: PGSSLROOTCERT, description: The variable with the file of the
        certification authority.}
      health_token: {type: str, default: SHIFTMASTER_HEALTH_TOKEN, description: The variable with the token of the deep
        health endpoint.}
  app_root: {description: The application's directory., type: path, default: /var/www/shiftmaster}
  app_user: {description: The system user as whom the release's C(celery) runs., type: str, default: shiftmaster}
  language: {description: "The language of details, hints and report.", type: str, default: en, choices: [en, ja]}
  fail_on:
    description:
      - What counts as failing in RV(failing).
      - V(critical) means critical, unhealthy and down, and error too, since a check that could not run verifies
        nothing. V(warning) means all but healthy. V(never) means nothing.
    type: str
    default: critical
    choices: [critical, warning, never]
  host_name: {description: The host's name in the report; its own host name by default., type: str}
  proc_path: {description: Where the kernel's metrics are read (for tests and containers)., type: path, default: /proc}
attributes:
  check_mode: {description: "It reads only, so it does the same in check mode.", support: full}
  diff_mode: {description: It changes nothing., support: none}
"""

EXAMPLES = r"""
- name: Check the guide's seven
  shiftmaster_health:
    environment_file: /var/www/shiftmaster/active/release/env
    checks:
      - {name: web, kind: http, url: "http://localhost:8000/health/"}
      - {name: database, kind: postgres}
      - {name: redis, kind: redis, environment_key: CACHE_URL}
      - {name: celery, kind: celery, application: shiftmaster, worker_pattern: "*{slot}*"}
      - {name: nginx, kind: systemd, units: [nginx]}
      - {name: disk_space, kind: disk, warning: 80, critical: 90}
      - {name: memory, kind: memory}
  register: health
  failed_when: health.failing | length > 0
"""

RETURN = r"""
worst: {returned: always, type: str, sample: warning, description: "The worst status; from good to bad healthy, warning,
  error, unhealthy, critical, down."}
failing: {returned: always, type: list, elements: str, description: The names of the checks that fail by O(fail_on).}
report_text:
  description: The report of the operations guide.
  returned: always
  type: str
  sample: |-
    === ShiftMaster System Health Report ===
    Report generated: 2026-01-31 08:00:00 UTC+09:00
    Host: app1

    ✅ WEB: healthy
       Detail: HTTP 200
       Response time: 0.012s
    ❌ DATABASE: down
       Error: localhost:5432: connection refused
       Hint: PostgreSQL does not run or listens elsewhere: systemctl start postgresql; pg_lsclusters

    Overall health: 1/2 services healthy
report_lines: {description: "The same, a line an entry.", returned: always, type: list, elements: str}
report:
  description:
    - The report as data, with C(host), C(generated) (ISO 8601 with the host's time zone), C(seconds), C(healthy),
      C(total), C(worst) and C(checks).
    - Each of C(checks) has C(name), C(kind), C(status), C(icon), C(latency_ms) (null where that means nothing),
      C(seconds) of the last attempt, C(attempts), C(detail) and C(hint) in O(language) (the hint is empty when
      healthy), C(error) (the system's message, or empty), C(usage_percent) for disk and memory, and C(data), the
      metrics of the kind such as C(mounts), C(days_left), C(units), C(workers) or C(parts).
  returned: always
  type: dict
"""

import datetime
import socket
import time

from ansible.module_utils.shiftmaster.health import engine
from ansible.module_utils.shiftmaster.health.checks import ENVIRONMENT_KEYS, KINDS, Context
from ansible.module_utils.shiftmaster.host.quiet import QuietModule, dict_of, given, list_of
from ansible.module_utils.shiftmaster.host.texts import LANGUAGES

# Options of one check, but for name and kind: type, default.
_TEXT = {"type": "str"}
_PATH = {"type": "path"}
_TEXTS = {"type": "list", "elements": "str", "default": []}
CHECK_OPTIONS = {
    "name": {"type": "str", "required": True},
    "kind": {"type": "str", "required": True, "choices": list(KINDS)},
    "timeout_seconds": {"type": "float"},
    "retries": {"type": "int", "default": 0},
    "delay_seconds": {"type": "float", "default": 1},
    "consecutive_successes": {"type": "int", "default": 1},
    "warning": {"type": "float"},
    "critical": {"type": "float"},
    "enabled": {"type": "bool", "default": True},
    "unit": _TEXT,
    "log_file": _TEXT,
    "hint": _TEXT,
    "url": _TEXT,
    "path": _TEXT,
    "host_header": _TEXT,
    "headers": {"type": "dict"},
    "expected_status": {"type": "list", "elements": "int", "default": [200]},
    "pages": _TEXTS,
    "access_log": _PATH,
    "body_contains": _TEXT,
    "validate_certs": {"type": "bool", "default": True},
    "ca_file": _PATH,
    "parts": _TEXTS,
    "host": _TEXT,
    "port": {"type": "int"},
    "socket": _PATH,
    "tls": {"type": "bool", "default": False},
    "allow_noauth": {"type": "bool", "default": False},
    "set": {"type": "str", "default": "shiftmaster"},
    "redis_port": {"type": "int"},
    "address": _TEXT,
    "environment_key": {"type": "str", "no_log": False},  # a name, not a secret
    "database": _TEXT,
    "user": _TEXT,
    "sslmode": _TEXT,
    "run_as": _TEXT,
    "application": {"type": "str", "default": "shiftmaster"},
    "release_dir": _PATH,
    "worker_pattern": {"type": "str", "default": "*"},
    "min_workers": {"type": "int", "default": 1},
    "queues": _TEXTS,
    "units": _TEXTS,
    "paths": {"type": "list", "elements": "path", "default": []},
    "exclude": _TEXTS,
    "file": _PATH,
    "server_name": _TEXT,
    "verify_chain": {"type": "bool", "default": False},
}


def argument_spec() -> dict:
    """Return what the module takes."""
    return {
        "checks": dict(
            list_of(**CHECK_OPTIONS),
            required_if=[
                *(("kind", kind, ("url",)) for kind in ("http", "pages")),
                ("kind", "tcp", ("port", "socket"), True),
                ("kind", "systemd", ("units",)),
                ("kind", "certificate", ("file", "url"), True),
            ],
        ),
        "environment_file": _PATH,
        # Names, not secrets.
        "environment_keys": dict(
            dict_of(**{name: given(default, no_log=False) for name, default in ENVIRONMENT_KEYS.items()}), no_log=False
        ),
        "app_root": {"type": "path", "default": "/var/www/shiftmaster"},
        "app_user": {"type": "str", "default": "shiftmaster"},
        "language": {"type": "str", "choices": list(LANGUAGES), "default": "en"},
        "fail_on": {"type": "str", "choices": ["critical", "warning", "never"], "default": "critical"},
        "host_name": _TEXT,
        "proc_path": {"type": "path", "default": "/proc"},
    }


_LEAST = {"timeout_seconds": 0.1, "retries": 0, "delay_seconds": 0, "consecutive_successes": 1, "min_workers": 1}


def problems(checks: list) -> list:
    """Return what is wrong with the list beyond what the argument spec sees."""
    found = []
    names = [check["name"] for check in checks]
    for name in sorted({name for name in names if names.count(name) > 1}):
        found.append("the name %s is used twice" % name)
    for check in checks:
        for option, least in _LEAST.items():
            if check.get(option) is not None and check[option] < least:
                found.append("%s: %s must be at least %g" % (check["name"], option, least))
        if check["kind"] == "systemd" and not check["units"]:
            found.append("%s: units is empty" % check["name"])
    return found


def check_host(parameters: dict, now: datetime.datetime) -> dict:
    """Run the checks and return what the module returns."""
    language = parameters["language"]
    names = ("environment_file", "environment_keys", "app_root", "app_user", "proc_path")
    context = Context(*(parameters[name] for name in names))
    began = time.monotonic()
    outcomes = engine.run_checks([check for check in parameters["checks"] if check["enabled"]], context)
    results = [engine.describe(*outcome, language, context) for outcome in outcomes]
    report = engine.make_report(results, parameters["host_name"] or socket.gethostname(), now)
    report["seconds"] = round(time.monotonic() - began, 2)
    failing = [result["name"] for result in engine.failing(results, parameters["fail_on"])]
    return engine.result_of(report, engine.report_lines(report, language), failing)


def main():
    module = QuietModule(argument_spec=argument_spec(), supports_check_mode=True)
    found = problems(module.params["checks"])
    if found:
        module.fail_json(msg="checks: " + "; ".join(found))
    module.exit_json(**check_host(module.params, datetime.datetime.now(datetime.timezone.utc)))


if __name__ == "__main__":
    main()
