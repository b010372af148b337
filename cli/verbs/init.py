"""Inventory, variables and an encrypted vault of a new environment of one host."""

from __future__ import annotations

import json
import os
import re
import secrets
import subprocess
from pathlib import Path

from ..environment import BIN, ROOT, Site, password_file, utf8
from ..texts import fail, say
from ..verb import verb

# The secrets of one host; those of the other groups are in vault.yml.example.
SECRETS = (
    "vault_shiftmaster_secret_key",
    "vault_shiftmaster_database_password",
    "vault_shiftmaster_redis_password",
    "vault_redis_admin_password",
    "vault_backup_cipher_passphrase",
    "vault_backup_restic_password",
    "vault_backup_database_password",
)
HOST = r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?"
# "host" or a variable: the pattern of an answer.
QUESTIONS = {
    "host": HOST,
    "shiftmaster_domain": HOST,
    "shiftmaster_repository": r"[^\s\"'{}]{3,500}",
    "shiftmaster_version": r"\w[\w./+@=#,-]{0,199}",
}


def prompted(name: str, pattern: str) -> str:
    while True:
        try:
            typed = input(f"{say('ask_' + name)}: ").strip()
        except EOFError:
            fail("no_terminal")
        except KeyboardInterrupt:
            print()
            fail("init_interrupted", 130)
        if re.fullmatch(pattern, typed):
            return typed
        print(say("answer_unusable", form=say("form_" + name)) if typed else say("answer_needed"))


def check_name(name: str, template: str) -> None:
    """Reject a name that is a group's or a value of YAML."""
    taken = {"all", "backup", "offsite", "no", "null", "true", "false", "yes", "on", "off"}
    taken |= set(re.findall(r"(?m)^    (\w+):", template)) - {"single"}
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or name in taken:
        fail("environment_name", 2)


def encrypted(vault: str, password: Path) -> str:
    """Return a vault; its secrets reach ansible-vault by a pipe and are never on the disk in clear."""
    if not password.exists():
        descriptor = os.open(password, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(32) + "\n")
    configured = {"ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_VAULT_PASSWORD_FILE": str(password)}
    environment = {**os.environ, **configured}
    utf8(environment)
    done = subprocess.run(
        [BIN / "ansible-vault", "encrypt", "--output", "-", "-"], input=vault, capture_output=True, text=True, cwd=ROOT,
        env=environment, check=False,
    )  # fmt: skip
    if done.returncode or not done.stdout.startswith("$ANSIBLE_VAULT"):
        fail("vault_failed", reason=done.stderr.strip())
    return done.stdout


@verb("init")
def init(site: Site, words: list[str]) -> int:
    name = site.name or (words + ["site"])[0]
    hosts, group = ROOT / "inventory" / name / "hosts.yml", ROOT / "group_vars" / name
    template = (ROOT / "inventory/single/hosts.yml").read_text()
    check_name(name, template)
    present = ", ".join(str(path.relative_to(ROOT)) for path in (hosts, group) if path.exists())
    if present:
        fail("environment_present", present=present)
    values = {variable: prompted(variable, pattern) for variable, pattern in QUESTIONS.items()}
    host = values.pop("host")
    variables = re.sub(r"\bsingle\b", name, (ROOT / "group_vars/single/vars.yml").read_text())
    for variable, value in values.items():
        line = f"{variable}: {json.dumps(value)}"
        variables = re.sub(rf"(?m)^(# )?{variable}: .*$", lambda _, line=line: line, variables)
    password = Path(os.environ.get("ANSIBLE_VAULT_PASSWORD_FILE") or password_file()).expanduser()
    vault = "---\n" + "".join(f"{secret}: {secrets.token_hex(32)}\n" for secret in SECRETS)
    made = {
        hosts: re.sub(r"\bsingle\b", name, template).replace("shift.example.jp:", f"{host}:"),
        group / "vars.yml": variables,
        group / "vault.yml": encrypted(vault, password),
    }
    for path, content in made.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    directory = f".secrets/{name}"
    (ROOT / directory).mkdir(mode=0o700, parents=True, exist_ok=True)
    files = ", ".join(str(path.relative_to(ROOT)) for path in made)
    print(say("written", files=files, password=password, secrets=directory, host=host, name=name))
    return 0


COMMANDS = [init]
