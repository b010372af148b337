"""The environment of Ansible (inventory, vault password, locale), and the one place that runs a command."""

from __future__ import annotations

import difflib
import locale
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from shiftmaster.host.texts import language_of

from .texts import fail, say

ROOT = Path(__file__).resolve().parent.parent
BIN = ROOT / ".venv/bin"


def meant(word: str, known: Iterable[str]) -> str:
    """Return a question for the nearest of the known words, or nothing."""
    near = difflib.get_close_matches(word, known, n=1)
    return say("did_you_mean", near=near[0]) if near else ""


def utf8(environment: dict) -> None:
    """Ansible ends where the locale is not UTF-8, or is not installed. The language stays that of the person."""
    language = language_of(environment)
    try:
        locale.setlocale(locale.LC_ALL, "")
        usable = locale.nl_langinfo(locale.CODESET).upper() == "UTF-8"
    except locale.Error:
        usable = False
    if not usable:
        environment["LC_ALL"] = "C.UTF-8"
        if language == "ja":
            environment.setdefault("SHIFTMASTER_LANGUAGE", "ja")


def password_file() -> Path:
    return Path.home() / ".shiftmaster.vault-password"


@dataclass
class Site:
    """What -E names: a directory of inventory/; None for that of $ANSIBLE_INVENTORY, or the demo."""

    name: str | None

    def environment(self) -> dict:
        """Return the environment of Ansible: everything that one forgets to set."""
        path = f"{BIN}:{os.environ.get('PATH', '')}"
        environment = {**os.environ, "PATH": path, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg")}
        utf8(environment)
        if self.name is not None:
            if not re.fullmatch(r"[a-z0-9_]+", self.name) or not (ROOT / "inventory" / self.name).is_dir():
                known = sorted(path.name for path in (ROOT / "inventory").iterdir() if path.is_dir())
                near = meant(self.name, known)
                fail("environment_unknown", 2, name=self.name, meant=near, known=", ".join(known))
            environment["ANSIBLE_INVENTORY"] = str(ROOT / "inventory" / self.name)
        environment["SHIFTMASTER_CALLED_AS"] = shlex.quote(sys.argv[0]) + (f" -E {self.name}" if self.name else "")
        password = password_file()
        if not environment.get("ANSIBLE_VAULT_PASSWORD_FILE") and password.exists():
            environment["ANSIBLE_VAULT_PASSWORD_FILE"] = str(password)
            # An executable one is a program that prints it.
            if password.is_file() and password.stat().st_mode & 0o077 and not os.access(password, os.X_OK):
                print(say("password_readable", path=password), file=sys.stderr)
        return environment


def run(command: list[str], environment: dict) -> int:
    """Print and run a command; returns its exit code. Ctrl-C is the command's, and this program ends after it."""
    print(f"+ {shlex.join(command)}", file=sys.stderr, flush=True)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    child = subprocess.Popen(
        command, cwd=ROOT, env=environment, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler)
    )
    code = child.wait()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    return 128 - code if code < 0 else code
