#!/usr/bin/python
"""Collect evidence of what is wrong on a ShiftMaster host."""

from __future__ import annotations

DOCUMENTATION = r"""
module: shiftmaster_diagnose
short_description: Collect evidence of what is wrong on a ShiftMaster host
description:
  - Looks at everything that the troubleshooting script of the operations guide looks at, and more, all at the same
    time, each part within its own limit. What fails or hangs is evidence too.
  - It reads only, it starts no service, and it writes no file. It works without the application, without PostgreSQL,
    without room on the disk, and with the Python of Debian 12 and 13 alone.
  - Secrets are taken out on the host; values of the application's environment never leave it.
  - The action C(shiftmaster_findings) evaluates the evidence of all hosts.
options:
  area: {type: str, default: all, choices: [app, db, cpu, memory, disk, network, all, checklist], description: What to
    look at. V(checklist) is V(all) and what the checklists want besides.}
  functions: {type: list, elements: str, default: [], description: "What the host is for, as groups of the inventory
    (app, web, database, standby, cache, monitoring)."}
  limit_seconds: {description: After so long the module responds with what it has., type: float, default: 15}
  hours: {description: "How far back logs, journal and the access log are read.", type: float, default: 6}
  requested_at: {type: float, description: "The controller's clock at the query, as seconds since 1970; the host's own
    is compared with it."}
  host_name: {description: The host's name in the evidence; its own host name by default., type: str}
  app_root: {description: The application's directory., type: path, default: /var/www/shiftmaster}
  app_user: {description: The system user of the application., type: str, default: shiftmaster}
  web_user: {type: str, default: "", description: The system user of the web server's processes; empty where the host
    has none.}
  log_dir: {description: The directory of the application's logs., type: path, default: /var/log/shiftmaster}
  access_log: {type: path, default: /var/log/nginx/shiftmaster_access.log, description: "The web server's access log, in
    JSON as role nginx writes it."}
  environment_file: {type: path, description: "The environment file of the live release (systemd's format). Names are
    evidence, values are not."}
  environment_keys: {type: dict, default: {}, description: "The names of variables in O(environment_file), where an
    application uses others; as in M(shiftmaster_health)."}
  required_names: {type: list, elements: str, default: [], description: The names that O(environment_file) must have
    besides those that O(expected_values) gives a value.}
  expected_values: {type: dict, default: {}, description: "What names of O(environment_file) that hold no secret must
    be. A difference is evidence, and is shown."}
  domain: {description: The site's name., type: str, default: localhost}
  database: {description: The application's database., type: str, default: shiftmaster}
  postgres_port: {description: PostgreSQL's port., type: int, default: 5432}
  cluster_ca_file: {type: str, default: "", description: Authority of Patroni's REST API on this host; empty where
    the database is no cluster.}
  queues: {description: Celery's queues., type: list, elements: str, default: [celery]}
  celery_application: {description: Celery's application; empty where there is none., type: str, default: ""}
  redis_ports: {type: list, elements: list, default: [], description: "The ports of Redis on this host, each with
    whether it speaks TLS, C([[6379, false]])."}
  sentinel_port: {description: The port of Redis Sentinel on this host; 0 where there is none., type: int, default: 0}
  sentinel_ca_file: {type: path, default: /etc/ssl/shiftmaster/ca.crt, description: Authority of its certificate and of
    Redis'.}
  virtual_address: {type: str, default: "", description: "The address that one of several web servers holds, without its
    prefix length."}
  units: {type: list, elements: str, default: [], description: "Units that must be active; C({slot}) stands for the live
    slot."}
  ports: {type: dict, default: {}, description: "The ports that must be served on this host, each with the name of its
    program, C({5432:postgres})."}
  peers:
    description: What this host needs of others.
    type: list
    elements: dict
    default: []
    suboptions:
      host: {description: The other host's name in the inventory., type: str, required: true}
      address: {description: Its address., type: str, required: true}
      port: {description: The port., type: int, required: true}
      function: {description: "The function that it serves (database, cache, app).", type: str, required: true}
  names: {description: Names that must have an address., type: list, elements: str, default: [localhost]}
  certificates:
    description: Certificates to look at.
    type: list
    elements: dict
    default: []
    suboptions:
      name: {description: What it is called in the report., type: str, required: true}
      file: {description: The PEM file., type: path}
      port: {description: The port of this host that shows it., type: int}
      server_name: {description: The server name for TLS., type: str}
  http:
    description:
      - Addresses to query, by name; each a dictionary with C(url), C(path), C(host) (the Host header) and C(deep) (the
        response is that of the deep health endpoint).
      - C({slot}) in C(url) stands for the live slot, C({app_root}) for O(app_root).
    type: dict
    default: {}
  static_url: {type: str, default: "", description: Where a static file is requested; empty where this host hands out
    none.}
  backup_dir: {description: The directory of backups on this host., type: path, default: /var/backups/shiftmaster}
  prometheus:
    description: The Prometheus of this host, for the timeline's alerts, the charts and the checklists.
    type: dict
    suboptions:
      url: {description: Its address., type: str, required: true}
      user: {description: User name of the queries., type: str, default: prometheus}
      password_file: {description: The file of this host that holds the password., type: path, required: true}
      ca_file: {description: The certification authority of its certificate., type: path}
  proc_path: {description: Where the kernel's metrics are read (for tests and containers)., type: path, default: /proc}
attributes:
  check_mode: {description: "It reads only, so it does the same in check mode.", support: full}
  diff_mode: {description: It changes nothing., support: none}
seealso:
  - module: shiftmaster_health
"""

EXAMPLES = r"""
- name: Collect the host's evidence
  shiftmaster_diagnose:
    functions: "{{ group_names }}"
    environment_file: /var/www/shiftmaster/active/release/env
    units: [nginx, shiftmaster]
    ports: {5432: postgres, 6379: redis-server, 443: nginx}
  register: evidence
"""

RETURN = r"""
evidence:
  description: >-
    What was found, with C(host), C(at) (seconds since 1970 by this host's clock), C(skew) (seconds that this clock is
    ahead of O(requested_at), which includes the way there; null without it), C(zone) of the host's logs (C(name),
    C(offset_seconds) east of UTC), C(seconds), C(area), C(functions) and C(parts). Each part has C(status) (ok, failed,
    hung, or absent where the host has no such thing), C(seconds), and C(error) where it is not ok; docs/diagnosis.md
    describes the rest.
  returned: always
  type: dict
"""

import os
import socket
import time

from ansible.module_utils.shiftmaster.diagnosis import engine
from ansible.module_utils.shiftmaster.diagnosis.setting import AREAS, PARTS, SUSPICION, Setting, suspicions
from ansible.module_utils.shiftmaster.host.quiet import PATH, TEXT, QuietModule, dict_of, given, list_of

_TEXTS = given([], elements="str")


def argument_spec() -> dict:
    """Return what the module takes."""
    return {
        "area": given("all", choices=[*AREAS, "all", "checklist"]),
        "functions": _TEXTS,
        "limit_seconds": {"type": "float", "default": 15},
        "hours": {"type": "float", "default": 6},
        "requested_at": {"type": "float"},
        "host_name": {"type": "str"},
        "app_root": {"type": "path", "default": "/var/www/shiftmaster"},
        "app_user": given("shiftmaster"),
        "web_user": given(""),
        "log_dir": {"type": "path", "default": "/var/log/shiftmaster"},
        "access_log": {"type": "path", "default": "/var/log/nginx/shiftmaster_access.log"},
        "environment_file": {"type": "path"},
        "environment_keys": given({}, no_log=False),  # names, not secrets
        "required_names": _TEXTS,
        "expected_values": given({}),
        "domain": given("localhost"),
        "database": given("shiftmaster"),
        "postgres_port": given(5432),
        "cluster_ca_file": given(""),
        "queues": given(["celery"], elements="str"),
        "celery_application": given(""),
        "redis_ports": given([], elements="list"),
        "sentinel_port": given(0),
        "sentinel_ca_file": {"type": "path", "default": "/etc/ssl/shiftmaster/ca.crt"},
        "virtual_address": given(""),
        "units": _TEXTS,
        "ports": given({}),
        "peers": list_of(host=TEXT, address=TEXT, port={"type": "int", "required": True}, function=TEXT),
        "names": given(["localhost"], elements="str"),
        "certificates": list_of(name=TEXT, file={"type": "path"}, port={"type": "int"}, server_name={"type": "str"}),
        "http": given({}),
        "static_url": given(""),
        "backup_dir": {"type": "path", "default": "/var/backups/shiftmaster"},
        "prometheus": dict_of(
            url=TEXT, user=given("prometheus"), password_file=dict(PATH, no_log=False), ca_file={"type": "path"}
        ),
        "proc_path": {"type": "path", "default": "/proc"},
    }


def diagnose(parameters: dict) -> dict:
    """Return the evidence of this host."""
    began, at = time.monotonic(), time.time()
    setting = Setting(parameters)
    parts = engine.chosen(PARTS, parameters["area"], setting.functions)
    evidence = engine.collect(parts, setting, parameters["limit_seconds"])
    left = parameters["limit_seconds"] - (time.monotonic() - began)
    if suspicions(evidence) and setting.celery_application and left > 2:
        evidence.update(engine.collect(SUSPICION, setting, left))
    return {
        "host": parameters["host_name"] or socket.gethostname(),
        "at": at,
        "skew": None if parameters["requested_at"] is None else round(at - parameters["requested_at"], 1),
        "zone": {"name": time.strftime("%Z", time.localtime(at)), "offset_seconds": time.localtime(at).tm_gmtoff},
        "seconds": round(time.monotonic() - began, 2),
        "area": parameters["area"],
        "functions": list(setting.functions),
        "parts": evidence,
    }


def main():
    module = QuietModule(argument_spec=argument_spec(), supports_check_mode=True)
    # A module's process writes no compiled files next to the code that it reads, and nothing waits after it.
    os.nice(5)
    module.exit_json(changed=False, evidence=diagnose(module.params))


if __name__ == "__main__":
    main()
