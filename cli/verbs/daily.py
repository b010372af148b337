"""Daily work on the hosts: a terminal, commands of Django, its shell, and the database."""

from __future__ import annotations

import getpass
import platform

from ..connection import Inventory
from ..environment import Site, meant
from ..texts import fail
from ..verb import verb


def on_application_host(site: Site, tool: str, words: list[str], options: tuple[str, ...] | None = None) -> int:
    """Run shiftmasterctl on an application host, in the name of the person who types.

    words: perhaps --host NAME, then those of the tool; options: the only ones that it has.
    """
    name = None
    if words[:1] == ["--host"]:
        if len(words) == 1:
            fail("host_unnamed", 2)
        name, words = words[1], words[2:]
    for word in words if options is not None else ():
        if word not in options:
            fail("word_unknown", 2, command=tool, word=word, meant=meant(word, options), known=", ".join(options))
    if options is None and not words:
        fail("manage_usage", 2)
    inventory = Inventory(site)
    who = f"{getpass.getuser()}@{platform.node()}"
    line = ["/usr/local/sbin/shiftmasterctl", "--by", who, tool, *words]
    return inventory.run(inventory.host(name, "app"), line)


@verb("ssh [HOST] [COMMAND]")
def ssh(site: Site, words: list[str]) -> int:
    inventory = Inventory(site)
    name = inventory.host(words[0] if words else None, "app")
    # One word is a line for the shell, as with ssh itself.
    return inventory.run(name, ["/bin/sh", "-c", words[1]] if len(words) == 2 else words[1:])


@verb("manage ARGUMENTS")
def manage(site: Site, words: list[str]) -> int:
    return on_application_host(site, "manage", words)


@verb("shell [--read-only]")
def shell(site: Site, words: list[str]) -> int:
    return on_application_host(site, "shell", words, ("--read-only",))


@verb("db [--write]")
def db(site: Site, words: list[str]) -> int:
    return on_application_host(site, "db", words, ("--write",))


COMMANDS = [ssh, manage, shell, db]
