"""Filter `verify_report`."""

from __future__ import annotations

PARTS = ("elasticsearch", "logstash", "kibana", "filebeat")


def verify_report(hosts, groups):
    """Return what playbooks/verify.yml has found, a line for each check of each host: NOT RUN, PASSED or FAILED.

    hosts: hostvars, with what logging_verify and logging_canary have returned. A check that a stub answered is marked.
    A part that no host is to have, and a host that did not respond, have not run.
    """
    lines = []
    for part in PARTS:
        if not groups.get(part):
            lines.append(f"{part}: NOT RUN: no host has it")
    for host in sorted(hosts):
        checks = []
        wanted = [part for part in PARTS if host in (groups.get(part) or [])]
        parts = hosts[host].get("verify_parts") or {}
        if wanted and "checks" not in parts:
            checks += [
                {"part": part, "check": "everything", "result": "not run", "detail": "the host did not respond"}
                for part in wanted
            ]
        checks += parts.get("checks") or []
        checks += (hosts[host].get("verify_line") or {}).get("checks") or []
        for check in checks:
            text = f"{host}: {check['part']}: {check['check']}: {check['result'].upper()}"
            if check.get("package") == "stub":
                text += " (on a stub)"
            lines.append(text + (f": {check['detail']}" if check["detail"] else ""))
    if not any(host.get("verify_line") and host["verify_line"].get("checks") for host in hosts.values()):
        lines.append("canary: NOT RUN: no application host has Filebeat")
    return lines


class FilterModule:
    def filters(self):
        return {"verify_report": verify_report}
