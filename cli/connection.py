"""Hosts of the inventory, and commands on them by the connection of Ansible: ssh with its options, or docker."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import uuid

from .environment import Site, meant
from .texts import fail

# Every play of this repository becomes root in this way; sudo asks on the terminal.
BECOME = ["/bin/sh", "-c", '[ "$(id -u)" = 0 ] || exec sudo -- "$@"; exec "$@"', "sh"]
LOGIN_SHELL = ["/bin/bash", "--login"]
# ssh's code where there is no connection, or none any more.
NO_CONNECTION = 255
# docker leaves a process running whose client ends. A variable in its environment marks it.
SESSION = "SHIFTMASTER_SESSION"
HANG_UP = 'for one in /proc/[0-9]*; do grep -qsz "^$0$" "$one/environ" && kill -HUP "${one#/proc/}"; done; :'


class Inventory:
    """The inventory of a site, by Ansible's own API. It reads the vault as a playbook does."""

    def __init__(self, site: Site):
        os.environ.update(site.environment())
        # Ansible reads its configuration where it is imported.
        from ansible import constants
        from ansible.cli import CLI
        from ansible.inventory.manager import InventoryManager
        from ansible.parsing.dataloader import DataLoader
        from ansible.plugins.loader import init_plugin_loader
        from ansible.vars.manager import VariableManager

        init_plugin_loader()
        self.loader = DataLoader()
        CLI.setup_vault_secrets(self.loader, vault_ids=constants.DEFAULT_VAULT_IDENTITY_LIST, auto_prompt=False)
        self.inventory = InventoryManager(loader=self.loader, sources=constants.DEFAULT_HOST_LIST)
        self.variables = VariableManager(loader=self.loader, inventory=self.inventory)

    def host(self, name: str | None, group: str) -> str:
        """Return a host by its name; without one the first of the group."""
        if name is None:
            found = [host.name for host in self.inventory.get_hosts(group)]
            return found[0] if found else fail("no_host", 2, group=group)
        known = [host.name for host in self.inventory.get_hosts("all")]
        if name not in known:
            fail("host_unknown", 2, name=name, meant=meant(name, known), known=", ".join(known))
        return name

    def options(self, name: str) -> dict:
        """Return the connection variables of a host."""
        from ansible.template import Templar

        host = self.inventory.get_host(name)
        variables = self.variables.get_vars(host=host, include_hostvars=False)
        templar = Templar(loader=self.loader, variables=variables)
        names = [one for one in variables if one.startswith("ansible_") and one != "ansible_facts"]
        return {**{one: templar.template(variables[one]) for one in names}, "inventory_hostname": name}

    def run(self, name: str, words: list[str]) -> int:
        """Run words on a host as root, without words a login shell; returns the exit code."""
        options, terminal = self.options(name), sys.stdin.isatty() and sys.stdout.isatty()
        kind = str(options.get("ansible_connection", "ssh")).rpartition(".")[2]
        address = str(options.get("ansible_host", name))
        if kind == "local":
            return attach([*BECOME, *(words or LOGIN_SHELL)])
        if kind == "docker":
            user = ["-u", str(options["ansible_user"])] if options.get("ansible_user") else []
            start, session = ["docker", "exec", *user], f"{SESSION}={uuid.uuid4()}"
            code = attach(
                [*start, "-it" if terminal else "-i", "-e", session, address, *BECOME, *(words or LOGIN_SHELL)],
                hang_up=[*start, address, *BECOME, "/bin/sh", "-c", HANG_UP, session],
            )
            lost = code == 1 and subprocess.run([*start, address, "true"], capture_output=True, check=False).returncode
        elif kind in ("ssh", "smart"):
            code = attach(self._ssh(options, address, shlex.join([*BECOME, *words]) if words else "", terminal))
            lost = code == NO_CONNECTION
        else:
            fail("connection_unknown", 2, host=name, kind=kind)
        return fail("host_unreachable", 1, host=name) if lost else code

    def _ssh(self, options: dict, address: str, command: str, terminal: bool) -> list[str]:
        from ansible.playbook.play_context import PlayContext
        from ansible.plugins.loader import connection_loader

        context = PlayContext()
        context.remote_addr = address
        connection = connection_loader.get("ansible.builtin.ssh", context)
        connection.set_options(var_options=options)
        connection.host = connection.get_option("host") or address
        words = ["-t" if terminal else "-T", connection.host, *([command] if command else [])]
        found = connection._build_command(connection.get_option("ssh_executable"), "ssh", *words)
        return [os.fsdecode(word) for word in found]


def attach(command: list[str], hang_up: list[str] | None = None) -> int:
    """Run a command on the terminal or the streams of this process; Ctrl-C is the command's. Returns its exit code.

    hang_up: the command that ends it on the host where the terminal goes away.
    """
    signals, seen = (signal.SIGINT, signal.SIGHUP, signal.SIGTERM), []

    def default() -> None:
        for number in signals:
            signal.signal(number, signal.SIG_DFL)

    def end(number: int, _frame) -> None:
        seen.append(number)
        if number != signal.SIGINT:
            child.send_signal(number)

    try:
        child = subprocess.Popen(command, preexec_fn=default)
        for number in signals:
            signal.signal(number, end)
        code = child.wait()
    except FileNotFoundError:
        fail("program_missing", program=command[0])
    if seen and hang_up:
        subprocess.run(hang_up, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=60)
    return 128 - code if code < 0 else code
