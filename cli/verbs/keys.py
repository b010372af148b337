"""The sheet of the backups' keys, without the keys themselves; and whether keys that are typed open the backups."""

from __future__ import annotations

import getpass
import hashlib
import json
import subprocess
import sys

from ..environment import BIN, ROOT, Site
from ..texts import fail, say
from ..verb import verb

# Without these nothing can be restored.
KEYS = ("vault_backup_cipher_passphrase", "vault_backup_restic_password", "vault_backup_offsite_password")


def fingerprint(name: str, value: str) -> str:
    # Short: it finds a mistyped key, and is of no use to guess one.
    return hashlib.sha256(f"{name}:{value}".encode()).hexdigest()[:8]


def known_keys(environment: dict) -> dict[str, str]:
    command = [BIN / "ansible-inventory", "--list"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)
    if done.returncode:
        fail("vault_unreadable", reason=done.stderr.strip())
    hosts = json.loads(done.stdout)["_meta"]["hostvars"].values()
    known = {name: next((host[name] for host in hosts if host.get(name)), None) for name in KEYS}
    known = {name: value for name, value in known.items() if value}
    if not known or not all(isinstance(value, str) for value in known.values()):
        fail("no_keys")
    return known


@verb("keys")
def keys(site: Site, _words: list[str]) -> int:
    environment = site.environment()
    known = known_keys(environment)
    print(say("keys_of", inventory=environment.get("ANSIBLE_INVENTORY", "demo").rpartition("/")[2]))
    for name, value in known.items():
        print(f"  {fingerprint(name, value)}  {name:<32}{say(name)}")
    print(say("type_keys"), flush=True)
    wrong = False
    for name, value in known.items():
        try:
            typed = getpass.getpass(f"{name}: ") if sys.stdin.isatty() else input()
        except EOFError:
            break
        if typed:
            wrong = wrong or typed != value
            print(f"  {fingerprint(name, typed)}  {name:<32}{say('same' if typed == value else 'different')}")
    return int(wrong)


COMMANDS = [keys]
