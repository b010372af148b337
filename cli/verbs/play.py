"""Playbooks by their names. A value of a command is the variable that its playbook takes."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import click

from ..environment import BIN, ROOT, Site, meant, run
from ..texts import fail, say
from ..verb import verb

# By the form of the help: the variable of the value, and whether the value is needed.
FORMS = {
    "deploy [VERSION]": ("shiftmaster_version", False),
    "rollback [RELEASE]": ("to", False),
    "status": (None, False),
    "history": (None, False),
    "health": (None, False),
    "diagnose": (None, False),
    "checklist PERIOD": ("period", True),
    "backup": (None, False),
    "restore": (None, False),
    "maintenance on|off": ("state", True),
    "upgrade-postgresql": (None, False),
    "move STEP": ("step", True),
}


def check_options(words: list[str], environment: dict) -> None:
    """Name an unknown option: Ansible prints its complete help instead."""
    given = [word.partition("=")[0] for word in words if re.match("--[a-z]", word)]
    if set(given) <= {"--check", "--diff", "--tags", "--limit", "--extra-vars"}:
        return
    # With a locale that this machine lacks, Ansible ends without an output.
    command = [BIN / "ansible-playbook", "--help"]
    listed = subprocess.run(command, capture_output=True, text=True, env=environment, check=False).stdout
    known = set(re.findall(r"--[a-z][a-z-]*", listed))
    options = (ROOT / "group_vars/all/options.yml").read_text(encoding="utf-8")
    variables = dict(re.findall(r"(?m)^    (\w+): \{(?:choices: \[(.*?)\])?", options))
    for option in given if known else []:
        if not any(one.startswith(option) for one in known):
            variable = option[2:].replace("-", "_")
            values = variables.get(variable, "").replace(", ", "|").replace('"', "")
            near = say("did_you_mean", near=f"-e {variable}={values or say('value')}")
            fail("option_unknown", 2, option=option, meant=near if variable in variables else meant(option, known))


def command_line(name: str, words: list[str], variable: str | None = None) -> list[str]:
    """Return the call of a playbook; the first word is the value of the variable where it is no option."""
    values = []
    if variable and words and not words[0].startswith("-"):
        values, words = ["-e", json.dumps({variable: words[0]})], words[1:]
    if "--check" in words and "--diff" not in words and name in ("deploy", "rollback"):
        words = [*words, "--diff"]
    playbook = f"{name}.yml" if (ROOT / f"{name}.yml").exists() else f"playbooks/{name}.yml"
    return ["ansible-playbook", playbook, *values, *words]


def connection_options(words: list[str]) -> list[str]:
    """Return those that lead to the hosts, for another command after the one that they were given to."""
    found, value = [], False
    for word in words:
        option, equals, _ = word.partition("=")
        if value or option in ("-i", "--inventory", "-u", "--user", "--private-key", "--vault-password-file"):
            found.append(word)
            value = not value and not equals
        elif option in ("-K", "--ask-become-pass", "-k", "--ask-pass", "-J", "--ask-vault-pass"):
            found.append(word)
    return found


def play(name: str, words: list[str], environment: dict, variable: str | None = None) -> int:
    check_options(words, environment)
    code = run(command_line(name, words, variable), environment)
    # 99 is Ansible's after Ctrl-C.
    if code in (99, 130, 143) and name in ("deploy", "rollback", "restore"):
        print(say("interrupted", command=name), file=sys.stderr)
        run(command_line("status", connection_options(words)), environment)
    return code


def named(form: str) -> click.Command:
    """Return the command of a form of FORMS, or of any other playbook's name."""
    variable, needed = FORMS.get(form, (None, False))
    name, _, value = form.partition(" ")

    # Of the others, the catalogue describes all at once.
    @verb(form if form in FORMS else "NAME")
    def command(site: Site, words: list[str]) -> int:
        given = bool(words) and not words[0].startswith("-")
        if needed and not given and not any(word.startswith(f"{variable}=") for word in words):
            fail("value_missing", 2, command=name, form=value, summary=say(form))
        return play(name.replace("-", "_"), words, site.environment(), variable)

    command.name = name
    return command


COMMANDS = [named(form) for form in FORMS]
