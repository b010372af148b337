#!/usr/bin/env python3
"""Writes a host into an inventory: `./shiftmaster grow FUNCTION HOST` (playbooks/grow.yml).

  scripts/grow_inventory.py [--back] inventory/<environment>/hosts.yml app|database|cache|database,cache HOST [ADDRESS]

For `app` the host joins the group; database and cache move to it. The file of before is kept as hosts.yml.orig.
--back takes it again, where this change is all that has been made since.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import yaml

FUNCTIONS = ("app", "database", "cache")


class Plain(yaml.SafeDumper):
    """Without anchors: a group that shares its hosts with another one must not get the host of that one."""

    def ignore_aliases(self, data):
        return True

    def increase_indent(self, flow=False, indentless=False):
        return super().increase_indent(flow, False)


Plain.add_representer(type(None), lambda dumper, _: dumper.represent_scalar("tag:yaml.org,2002:null", ""))


def hosts_of(content: dict, group: str) -> list:
    return list((content["all"]["children"].get(group) or {}).get("hosts") or {})


def grown(content: dict, functions: list, host: str, address: str = "") -> dict:
    """Return the inventory with the host; ValueError where it cannot be written."""
    unknown = [one for one in functions if one not in FUNCTIONS]
    if unknown or not functions:
        raise ValueError("%s: there are app, database and cache" % ", ".join(unknown or ["nothing to do"]))
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,252}", host):
        raise ValueError("%s is no name of a host" % ascii(host))
    children = (content.get("all") or {}).get("children") or {}
    apps, data = hosts_of(content, "app"), [one for one in functions if one != "app"]
    # The environment: the group that has variables and every application host.
    named = [one for one in children.values() if one and "vars" in one and set(apps) <= set(one.get("hosts") or {})]
    if not apps or not named:
        raise ValueError("it is not of the form of inventory/single: edit it yourself")
    if data and ("app" in functions or host in apps):
        raise ValueError("a host of their own for database and cache first, then a further application host")
    if data and len(apps) != 1:
        raise ValueError("group app holds %s: data move while there is one application host" % ", ".join(apps))
    for one in data:
        found = ", ".join(hosts_of(content, one)) or "no host"
        if len(hosts_of(content, one)) != 1:
            raise ValueError("group %s holds %s: it cannot be moved" % (one, found))
        if found not in [*apps, host]:
            raise ValueError("group %s holds %s: it moves from the application host alone" % (one, found))
    local = [one for one in ("database", "cache") if set(hosts_of(content, one)) & set(apps)]
    if not data and local:
        raise ValueError(
            "%s on %s would have to be restarted for a further application host: first ./shiftmaster grow %s HOST"
            % (" and ".join(local), apps[0], ",".join(local))
        )
    known = named[0]["hosts"].get(host) or {}
    named[0]["hosts"] = {**named[0]["hosts"], host: {**known, **({"ansible_host": address} if address else {})} or None}
    for one in functions:
        kept = (children[one].get("hosts") or {}) if one == "app" else {}
        children[one] = {**children[one], "hosts": {**kept, host: None}}
    return content


def back(path: Path, functions: list, host: str, address: str = "") -> int:
    """Take the file of before again."""
    orig = path.with_name(path.name + ".orig")
    try:
        before, now = (yaml.safe_load(one.read_text(encoding="utf-8")) for one in (orig, path))
        known = grown(before, functions, host, address or addresses(now).get(host, "")) == now
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError, AttributeError):
        known = False
    if not known:
        print(
            f"ERROR: {path} was not changed: {orig.name} is not what it was before. Edit it yourself.", file=sys.stderr
        )
        return 1
    orig.replace(path)
    print(f"{path} is what it was before.")
    return 0


def addresses(content: dict) -> dict:
    """Return the address of each host that has one."""
    hosts = [host for one in content["all"]["children"].values() for host in ((one or {}).get("hosts") or {}).items()]
    return {name: found["ansible_host"] for name, found in hosts if "ansible_host" in (found or {})}


def main(words: list) -> int:
    if words[:1] == ["--back"] and len(words) in (4, 5):
        return back(Path(words[1]), [one for one in words[2].split(",") if one], *words[3:])
    if len(words) not in (3, 4):
        print(__doc__, file=sys.stderr)
        return 2
    path = Path(words[0])
    text = path.read_text(encoding="utf-8")
    try:
        content, functions = yaml.safe_load(text), [one for one in words[1].split(",") if one]
        moved = any(words[2] not in hosts_of(content, one) for one in functions)
        grown(content, functions, words[2], *words[3:])
    except (ValueError, yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        print(f"ERROR: {path} was not changed: {error}", file=sys.stderr)
        return 1
    head = re.match(r"(---\n)?((#.*)?\n)*", text)[0]
    body = yaml.dump(content, Dumper=Plain, sort_keys=False, allow_unicode=True, width=1000)
    new = head + body
    if yaml.safe_load(text) == content:
        print(f"{path} names {words[2]} already.")
        return 0
    # Where it names another address alone, the file of before is that of the first run.
    if moved:
        path.with_name(path.name + ".orig").write_text(text, encoding="utf-8")
    path.write_text(new, encoding="utf-8")
    print(f"{path} names {words[2]} for {words[1]}; what it was before is in {path.name}.orig.")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
