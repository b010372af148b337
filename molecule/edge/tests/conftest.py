"""Requests to the web server of a host, from that host."""

from __future__ import annotations

import json
import re
import shlex
from types import SimpleNamespace

import pytest
from support import play

NAMES = ("shift.test:443", "www.shift.test:443", "shift.test:80", "other.test:80")


class Web:
    def __init__(self, host):
        self.host = host

    def run(self, command):
        return self.host.run(command)

    def ok(self, command):
        done = self.host.run(command)
        assert done.rc == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def get(self, path="/", *options, url="https://shift.test", source="127.0.0.1"):
        """One request by curl. status, headers (lower case, in order), body."""
        names = "".join(f"--resolve {name}:127.0.0.1 " for name in NAMES)
        done = self.host.run(
            f"curl -ski --max-time 20 --path-as-is --interface {source} {names}"
            + " ".join(shlex.quote(part) for part in [*options, url + path])
        )
        assert done.rc == 0, f"curl ends with {done.rc}: {done.stdout} {done.stderr}"
        body = done.stdout
        while match := re.match(r"HTTP/[\d.]+ (\d+).*?\r?\n\r?\n", body, re.S):
            head, body = match, body[match.end() :]
        headers = [
            (name.lower(), value.strip())
            for name, _, value in (line.partition(":") for line in head[0].strip().splitlines()[1:])
        ]
        return SimpleNamespace(
            status=int(head[1]),
            headers=headers,
            body=body,
            all=lambda name: [value for key, value in headers if key == name],
            one=lambda name: next((value for key, value in headers if key == name), None),
        )

    def echo(self, *options, query="", **more):
        """The headers that the application received."""
        response = self.get(f"/echo?{query}", *options, **more)
        return dict(json.loads(response.body)), response

    def playbook(self, path, *arguments, **variables):
        """Run a playbook against this host. Its exit code, how much it changed, and its output."""
        name = self.host.backend.get_hostname()
        words = ("--inventory", "molecule/edge/inventory", *arguments)
        code, out = play(name, path, *words, timeout=180, **variables)
        changed = re.search(rf"{re.escape(name)} .*changed=(\d+)", out)
        return SimpleNamespace(
            rc=code, out=out, flat=" ".join(out.split()), changed=int(changed[1]) if changed else None
        )

    def converge(self, *arguments, **variables):
        return self.playbook("molecule/edge/converge.yml", *arguments, **variables)

    def reconfigure(self, *arguments, **variables):
        return self.playbook("molecule/edge/files/reconfigure.yml", *arguments, **variables)

    @staticmethod
    def activation(slot):
        return (
            f"ln -sfn slots/{slot} /var/www/shiftmaster/active.new"
            " && mv -T /var/www/shiftmaster/active.new /var/www/shiftmaster/active"
        )

    def activate(self, slot):
        self.ok(self.activation(slot))


def pytest_collection_modifyitems(config, items):
    """nginx is tested on both Debian releases, the playbooks around it on one."""
    once = [
        item
        for item in items
        if item.module.__name__.endswith(("test_role", "test_maintenance")) and "bookworm" in item.name
    ]
    config.hook.pytest_deselected(items=once)
    items[:] = [item for item in items if item not in once]


@pytest.fixture
def web(host):
    """A host with both slots running, the blue one live and no maintenance, regardless of the test before it."""
    found = Web(host)
    found.ok(
        "rm -f /var/www/shiftmaster/shared/maintenance/on"
        "; systemctl start shiftmaster-web@blue shiftmaster-web@green; " + found.activation("blue")
    )
    return found
