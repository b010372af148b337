#!/usr/bin/python
# The state of the parts of the logging pipeline.
"""Query Elasticsearch, Logstash, Kibana and Filebeat for their own checks and their health."""

from __future__ import annotations

DOCUMENTATION = r"""
module: logging_verify
short_description: Check the parts of the logging pipeline on this host
description:
  - Each check has one of the results C(passed), C(failed) and C(not run). What cannot be queried, since its program or
    its package is not there, has not run, which is no pass.
  - Each shows whether it ran on the vendor's package or of a stub, a package that the tests have made.
options:
  parts: {type: list, elements: str, required: true, choices: [elasticsearch, logstash, kibana, filebeat], description:
    What is to be on this host.}
  ca_file: {description: Authority of the certificates., type: path}
  elasticsearch_url: {description: Elasticsearch's address., type: str, default: https://localhost:9200}
  elasticsearch_user: {description: A user of it., type: str, default: shiftmaster_admin}
  elasticsearch_password: {description: The user's password., type: str, default: ""}
  kibana_url: {description: Kibana's address., type: str, default: https://localhost:5601}
  logstash_api_url: {description: Address of Logstash's API., type: str, default: http://127.0.0.1:9600}
  timeout_seconds: {description: How long one check may take., type: int, default: 300}
attributes:
  check_mode: {description: It changes nothing., support: full}
  diff_mode: {support: none}
"""

EXAMPLES = r"""
- name: Verify | Check the parts of this host
  logging_verify:
    parts: [filebeat]
"""

RETURN = r"""
checks: {returned: always, type: list, elements: dict, description: "part, check, result, detail and package
  (C(vendor's), C(stub) or C(absent)) of each."}
"""

import os
import shutil
import subprocess
import tempfile

from ansible.module_utils.shiftmaster.host.json_api import Api, Failed
from ansible.module_utils.shiftmaster.host.quiet import QuietModule
from ansible.module_utils.shiftmaster.host.service_user import process_of
from ansible.module_utils.shiftmaster.logging.elastic import cluster_health

_LOGSTASH = ["/usr/share/logstash/bin/logstash", "--path.settings", "/etc/logstash", "--config.test_and_exit"]
COMMANDS = {
    "logstash": [("its configuration", [*_LOGSTASH, "--path.data", "{work}/data", "--path.logs", "{work}/logs"])],
    "filebeat": [
        ("its configuration", ["/usr/share/filebeat/bin/filebeat", "test", "config"]),
        ("its way to Logstash", ["/usr/share/filebeat/bin/filebeat", "test", "output"]),
    ],
}
# Logstash refuses root, and what root wrote into its directories the service could not write.
AS = {"logstash": ("logstash", ("ssl-cert",))}
# Filebeat's own checks begin another one: they pass while the service is stopped.
SERVICE = ["/usr/bin/systemctl", "is-active", "filebeat.service"]
_FILEBEAT = ["--path.home", "/usr/share/filebeat", "--path.config", "/etc/filebeat", "--path.data", "/var/lib/filebeat"]


def package(name):
    """Return whose package is installed."""
    done = subprocess.run(
        ["dpkg-query", "--show", "--showformat", "${db:Status-Status} ${Description}", name],
        capture_output=True,
        text=True,
    )
    if done.returncode != 0 or not done.stdout.startswith("installed"):
        return "absent"
    return "stub" if "stub" in done.stdout.splitlines()[0].lower() else "vendor's"


def ran(command, limit, who=None):
    """Return (result, detail) of a program that has to end with 0; {work} is a directory of its own to write to."""
    if not os.access(command[0], os.X_OK):
        return "not run", "%s is not there" % command[0]
    work = tempfile.mkdtemp(prefix="logging-verify-")
    try:
        more = process_of(*who) if who else {}
        if more:
            os.chown(work, more["user"], more["group"])
        words = [word.replace("{work}", work) for word in command]
        done = subprocess.run(words, capture_output=True, text=True, timeout=limit, stdin=subprocess.DEVNULL, **more)
    except subprocess.TimeoutExpired:
        return "failed", "no end after %d s" % limit
    except KeyError:
        return "failed", "there is no user %s" % who[0]
    except OSError as error:
        return "failed", str(error)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    if done.returncode == 0:
        return "passed", ""
    lines = [text.strip() for text in (done.stderr + "\n" + done.stdout).splitlines() if text.strip()]
    return "failed", " / ".join(lines[-3:])[:400]


def queried(get, of, good):
    """Return (result, detail) of a response that has to hold one of some values."""
    try:
        response = get()
        value = of(response)
    except Failed as error:
        return "failed", str(error)
    except (KeyError, TypeError, AttributeError) as error:
        return "failed", "another response: %s" % error
    return ("passed" if value in good else "failed"), str(value)


def reported(found):
    """Return the worst status of a health report but for the shards', which the check of the cluster evaluates."""
    status = {one["status"] for name, one in found["indicators"].items() if name != "shards_availability"}
    return next((one for one in ("red", "yellow", "unknown") if one in status), "green")


def checks_of(part, p):
    """Yield (check, function) of a part."""
    login = (p["elasticsearch_user"], p["elasticsearch_password"])
    if part == "elasticsearch":
        api = Api(p["elasticsearch_url"], p["ca_file"], login)
        yield "its cluster", lambda: queried(lambda: cluster_health(api), lambda found: found["status"], ("green",))
        yield "its report", lambda: queried(lambda: api.call("/_health_report"), reported, ("green",))
        mode = lambda found: found["operation_mode"]  # noqa: E731
        yield "lifecycle", lambda: queried(lambda: api.call("/_ilm/status"), mode, ("RUNNING",))
    if part == "kibana":
        api = Api(p["kibana_url"], p["ca_file"], login)
        status = lambda found: found["status"]["overall"]["level"]  # noqa: E731
        yield "its status", lambda: queried(lambda: api.call("/api/status"), status, ("available",))
    if part == "logstash":
        api = Api(p["logstash_api_url"])
        yield "its report", lambda: queried(lambda: api.call("/_health_report"), lambda f: f["status"], ("green",))
    if part == "filebeat":
        yield "its service", lambda: ran(SERVICE, p["timeout_seconds"])
    for check, command in COMMANDS.get(part, ()):
        command = command + (_FILEBEAT if part == "filebeat" else [])
        yield check, lambda command=command: ran(command, p["timeout_seconds"], AS.get(part))


def main():
    parts = ["elasticsearch", "logstash", "kibana", "filebeat"]
    module = QuietModule(
        argument_spec={
            "parts": {"type": "list", "elements": "str", "choices": parts, "required": True},
            "ca_file": {"type": "path"},
            "elasticsearch_url": {"type": "str", "default": "https://localhost:9200"},
            "elasticsearch_user": {"type": "str", "default": "shiftmaster_admin"},
            "elasticsearch_password": {"type": "str", "default": "", "no_log": True},
            "kibana_url": {"type": "str", "default": "https://localhost:5601"},
            "logstash_api_url": {"type": "str", "default": "http://127.0.0.1:9600"},
            "timeout_seconds": {"type": "int", "default": 300},
        },
        supports_check_mode=True,
    )
    found = []
    for part in module.params["parts"]:
        whose = package(part)
        for check, function in checks_of(part, module.params):
            result, detail = function() if whose != "absent" else ("not run", "the package is not installed")
            found.append({"part": part, "check": check, "result": result, "detail": detail, "package": whose})
    module.exit_json(changed=False, checks=found)


if __name__ == "__main__":
    main()
