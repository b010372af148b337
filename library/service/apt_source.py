#!/usr/bin/python
# A signed apt repository of somebody else.
# ruff: noqa: E402  (an Ansible module states its documentation before its imports)
"""Add a signed apt repository whose key has the expected fingerprint and that apt could read; or leave no trace."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: apt_source
short_description: Add a signed apt repository after apt has read and verified it
description:
  - Writes C(/etc/apt/keyrings/<name>.asc) and C(/etc/apt/sources.list.d/<name>.sources), and lets apt read the index of
    this one repository. What cannot be reached, or is signed by another key, is taken away again, since a source that
    cannot be read stops every later C(apt-get update) on the host; the task then fails and says what apt said.
  - The key's fingerprint is computed from the key itself and compared before anything is written.
  - Nothing is asked of the network where both files and the index are there, and the index knows O(packages).
options:
  name:
    description: The name of the files.
    type: str
    required: true
  url:
    description: Base URL of the repository or of a mirror; C(file:) works, too.
    type: str
    required: true
  suite:
    description: Its suite.
    type: str
    required: true
  components:
    description: Its components.
    type: list
    elements: str
    default: [main]
  signing_key:
    description: The public key that signs it, ASCII-armoured.
    type: str
    required: true
  fingerprint:
    description: The fingerprint that the key must have; blanks do not count. Empty accepts any.
    type: str
    default: ""
  packages:
    description:
      - Packages with the versions that are wanted, such as V(elasticsearch=9.2.1). Where apt knows one of them not yet,
        the index is read again, which is no change. What is not there then is for whoever installs it to say.
    type: list
    elements: str
    default: []
  timeout_seconds:
    description: How long apt waits for an answer; it tries twice.
    type: int
    default: 15
  root:
    description: The folder of apt's configuration; for tests.
    type: path
    default: /etc/apt
  lists:
    description: The folder of apt's indexes; for tests.
    type: path
    default: /var/lib/apt/lists
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
author:
  - ShiftMaster operations
"""

EXAMPLES = r"""
- name: Install | Add the repository
  apt_source:
    name: grafana
    url: https://mirror.example.org/grafana
    suite: stable
    signing_key: "{{ lookup('ansible.builtin.file', 'grafana.asc') }}"
    fingerprint: 0123 4567 89AB CDEF 0123 4567 89AB CDEF 0123 4567
"""

RETURN = r"""
known:
  description: Whether apt has an index of the repository now; false only in check mode.
  returned: always
  type: bool
fingerprints:
  description: Fingerprints of the keys in the key's text.
  returned: always
  type: list
  elements: str
"""

import base64
import binascii
import hashlib
import os
import re
import subprocess

from ansible.module_utils.shiftmaster.host.quiet import QuietModule


class Refused(Exception):
    """Nothing was changed; str() says why."""


def dearmoured(text):
    """The bytes of an ASCII-armoured public key."""
    match = re.search(
        r"-----BEGIN PGP PUBLIC KEY BLOCK-----\s*\n(?:[\w-]+:.*\n)*\s*\n(.*?)\n?(?:=[\w+/]{4}\s*\n)?"
        r"-----END PGP PUBLIC KEY BLOCK-----",
        text.replace("\r\n", "\n"),
        re.S,
    )
    if not match:
        raise Refused("the key is no ASCII-armoured public key (BEGIN PGP PUBLIC KEY BLOCK)")
    try:
        return base64.b64decode("".join(match.group(1).split()), validate=True)
    except (binascii.Error, ValueError):
        raise Refused("the key is damaged: it is no base64")


def packets(data):
    """Yield (tag, body) of each OpenPGP packet (RFC 9580, 4.2)."""
    at = 0
    while at < len(data):
        head = data[at]
        if not head & 0x80:
            raise Refused("the key is damaged: no packet where one should begin")
        at += 1
        if head & 0x40:
            tag, first = head & 0x3F, data[at]
            if first < 192:
                size, at = first, at + 1
            elif first < 224:
                size, at = ((first - 192) << 8) + data[at + 1] + 192, at + 2
            elif first == 255:
                size, at = int.from_bytes(data[at + 1 : at + 5], "big"), at + 5
            else:
                raise Refused("the key is damaged: a public key has no partial lengths")
        else:
            tag, kind = (head >> 2) & 0x0F, head & 3
            if kind == 3:
                raise Refused("the key is damaged: a packet without length")
            size, at = int.from_bytes(data[at : at + (1 << kind)], "big"), at + (1 << kind)
        if at + size > len(data):
            raise Refused("the key is damaged: it is cut off")
        yield tag, data[at : at + size]
        at += size


def fingerprints(text):
    """The fingerprints of the primary keys, in capitals."""
    found = []
    try:
        for tag, body in packets(dearmoured(text)):
            # 6 is a public key; version 4 hashes it by SHA-1, version 6 by SHA-256 (RFC 9580, 5.5.4).
            if tag == 6 and body[0] == 4:
                digest = hashlib.sha1(b"\x99" + len(body).to_bytes(2, "big") + body, usedforsecurity=False)
            elif tag == 6 and body[0] == 6:
                digest = hashlib.sha256(b"\x9b" + len(body).to_bytes(4, "big") + body)
            else:
                continue
            found.append(digest.hexdigest().upper())
    except IndexError:
        raise Refused("the key is damaged: it is cut off")
    if not found:
        raise Refused("there is no public key in the key's text")
    return found


def source_text(url, suite, components, key_path):
    return "\n".join(
        [
            "# Written by Ansible, module apt_source.",
            "Types: deb",
            "URIs: %s" % url,
            "Suites: %s" % suite,
            "Components: %s" % " ".join(components),
            "Signed-By: %s" % key_path,
            "",
        ]
    )


def index_prefix(url, suite):
    """How apt calls the files of this repository's index."""
    place = re.sub(r"^[a-z+]+:(?://)?(?:[^/@]*@)?", "", url.rstrip("/"))
    return ("%s/dists/%s/" % (place, suite)).replace("_", "%5f").replace("/", "_")


def read(path):
    try:
        with open(path, encoding="utf-8") as handle:
            return handle.read()
    except FileNotFoundError:
        return None


def write(path, text):
    """Text by a rename, readable for apt's own user; None removes."""
    if text is None:
        if os.path.lexists(path):
            os.unlink(path)
        return
    os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
    temporary = path + ".new"
    with open(temporary, "w", encoding="utf-8") as handle:
        handle.write(text)
        os.fchmod(handle.fileno(), 0o644)
    os.rename(temporary, path)


def update(source, timeout):
    """Let apt read this one repository. None, or what it says."""
    command = [
        "apt-get", "update", "-q",
        "-o", "Dir::Etc::SourceList=%s" % source,
        "-o", "Dir::Etc::SourceParts=/dev/null",
        # The indexes of the other sources stay.
        "-o", "APT::Get::List-Cleanup=false",
        # Without it apt ends with 0 where a repository does not answer.
        "-o", "APT::Update::Error-Mode=any",
        "-o", "Acquire::Retries=1",
        "-o", "Acquire::http::Timeout=%d" % timeout,
        "-o", "Acquire::https::Timeout=%d" % timeout,
        # A run of unattended-upgrades meanwhile is waited for.
        "-o", "DPkg::Lock::Timeout=120",
    ]  # fmt: skip
    try:
        done = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=dict(os.environ, LC_ALL="C", DEBIAN_FRONTEND="noninteractive"),
            timeout=20 * timeout + 120,
            check=False,
        )
    except FileNotFoundError:
        return "there is no apt-get"
    except subprocess.TimeoutExpired:
        return "apt-get did not end"
    text = done.stdout.decode("utf-8", "replace")
    lines = [line for line in text.splitlines() if re.match(r"(E|W|Err)[:\d]|  ", line)]
    return None if done.returncode == 0 else " ".join(" ".join(lines or text.splitlines()[-3:]).split())


def knows(packages):
    """Whether apt's indexes have each of these versions of packages. Asked once: each call reads all indexes."""
    if not packages:
        return True
    command = ["apt-cache", "show", "--no-all-versions"] + packages
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False)
    except FileNotFoundError:
        return True
    # It ends with 0 where it has a package in another version, and shows nothing of it.
    return len(re.findall(rb"^Package:", done.stdout, re.M)) >= len(set(packages))


class Source:
    def __init__(self, module):
        p = self.p = module.params
        self.module = module
        key_path = os.path.join(p["root"], "keyrings", p["name"] + ".asc")
        self.source = os.path.join(p["root"], "sources.list.d", p["name"] + ".sources")
        self.wanted = {
            key_path: p["signing_key"].strip() + "\n",
            self.source: source_text(p["url"], p["suite"], p["components"], key_path),
        }

    def has_index(self):
        prefix = index_prefix(self.p["url"], self.p["suite"])
        try:
            names = os.listdir(self.p["lists"])
        except FileNotFoundError:
            return False
        return any(name.startswith(prefix) and name.endswith("Release") for name in names)

    def run(self):
        p = self.p
        found = fingerprints(p["signing_key"])
        expected = re.sub(r"\s", "", p["fingerprint"]).upper()
        if expected and expected not in found:
            raise Refused("the key's fingerprint is %s, not %s" % (", ".join(found), expected))
        before = {path: read(path) for path in self.wanted}
        changed = {path for path, text in self.wanted.items() if before[path] != text}
        # apt calls an index by the repository's address: a new key for the same address has to be tried again.
        known = not changed and self.has_index()
        result = {
            "changed": bool(changed) or not known,
            "known": known,
            "fingerprints": found,
            "diff": [
                {"before": before[path] or "", "after": self.wanted[path], "before_header": path, "after_header": path}
                for path in sorted(changed)
            ],
        }
        current = known and knows(p["packages"])
        if current or self.module.check_mode:
            self.module.exit_json(**result)
        for path in changed:
            write(path, self.wanted[path])
        error = update(self.source, p["timeout_seconds"])
        if error:
            for path in changed:
                write(path, before[path])
            raise Refused("apt cannot use the repository at %s: %s" % (p["url"], error))
        self.module.exit_json(**dict(result, known=True))


def main():
    module = QuietModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "url": {"type": "str", "required": True},
            "suite": {"type": "str", "required": True},
            "components": {"type": "list", "elements": "str", "default": ["main"]},
            # A public key.
            "signing_key": {"type": "str", "required": True, "no_log": False},
            "fingerprint": {"type": "str", "default": ""},
            "packages": {"type": "list", "elements": "str", "default": []},
            "timeout_seconds": {"type": "int", "default": 15},
            "root": {"type": "path", "default": "/etc/apt"},
            "lists": {"type": "path", "default": "/var/lib/apt/lists"},
        },
        supports_check_mode=True,
    )
    try:
        Source(module).run()
    except Refused as error:
        module.fail_json(msg="The source %s was not added: %s" % (module.params["name"], error))


if __name__ == "__main__":
    main()
