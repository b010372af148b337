#!/usr/bin/python
# A line of the log that is looked for.
"""Write a line that nobody else writes, and look for it in Elasticsearch."""

from __future__ import annotations

DOCUMENTATION = r"""
module: logging_canary
short_description: Measure how long a line of a log takes to be searchable
description:
  - Appends one line to a file that Filebeat follows, and queries Elasticsearch until it is found exactly once.
  - Where no Elasticsearch is named nothing is written, and the result reports that it did not run.
options:
  file: {description: The file., type: path, required: true}
  environment_name: {description: The last part of the data stream's name., type: str, required: true}
  url: {description: Elasticsearch's address; empty where there is none., type: str, default: ""}
  ca_file: {description: Authority of its certificate., type: path}
  user: {description: A user that may search for the line., type: str, required: true}
  password: {description: The user's password., type: str, required: true}
  timeout_seconds: {description: How long the line may take., type: int, default: 120}
attributes:
  check_mode: {support: none}
  diff_mode: {support: none}
"""

EXAMPLES = r"""
- name: Verify | Write a log line and search for it
  logging_canary:
    file: /var/log/shiftmaster/canary.log
    environment_name: production
    url: https://localhost:9200
    ca_file: /etc/ssl/shiftmaster/ca.crt
    user: shiftmaster_canary
    password: "{{ elasticsearch_canary_password }}"
"""

RETURN = r"""
checks: {description: "One check, as logging_verify returns them.", returned: always, type: list, elements: dict}
"""

import uuid

from ansible.module_utils.shiftmaster.host.quiet import QuietModule
from ansible.module_utils.shiftmaster.logging import canary


def main():
    module = QuietModule(
        argument_spec={
            "file": {"type": "path", "required": True},
            "environment_name": {"type": "str", "required": True},
            "url": {"type": "str", "default": ""},
            "ca_file": {"type": "path"},
            "user": {"type": "str", "required": True},
            "password": {"type": "str", "required": True, "no_log": True},
            "timeout_seconds": {"type": "int", "default": 120},
        },
    )
    p = module.params
    check = {"part": "canary", "check": "a line is found by search", "result": "not run", "detail": ""}
    if not p["url"]:
        check["detail"] = "there is no Elasticsearch"
        module.exit_json(changed=False, checks=[check])
    api = canary.Api(p["url"], p["ca_file"], (p["user"], p["password"]))
    stream = "logs-shiftmaster.canary-" + p["environment_name"]
    try:
        result = canary.measure(api, p["file"], stream, uuid.uuid4().hex, p["timeout_seconds"])
    except (canary.Failed, OSError) as error:
        check.update(result="failed", detail=str(error))
        module.exit_json(changed=True, checks=[check])
    if result["count"] == 1:
        check.update(result="passed", detail="after %s s" % result["seconds"])
    elif result["count"]:
        check.update(result="failed", detail="it is there %d times" % result["count"])
    else:
        check.update(result="failed", detail="not found in %d s" % p["timeout_seconds"])
    module.exit_json(changed=True, checks=[check])


if __name__ == "__main__":
    main()
