"""The program: its environment, its commands and its help."""

from __future__ import annotations

import importlib
import os
import pkgutil
import re

import click

from . import verbs
from .environment import ROOT, Site, meant
from .texts import fail, say
from .verbs import play

# The order of the help; further verbs follow by their names.
FIRST = ("init", *(form.split()[0] for form in play.FORMS), "grow", "keys", "ssh", "manage", "shell", "db")


def version() -> str:
    """Return the version of this repository: that of the newest section of the changelog."""
    return re.search(r"(?m)^## \[([0-9][^\]]*)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"))[1]


class Verbs(click.Group):
    """Commands of cli/verbs/, one module for each family, and every other playbook by its name."""

    def list_commands(self, context: click.Context) -> list[str]:
        names = [name for name in self.commands if name not in FIRST]
        return [name for name in FIRST if name in self.commands] + sorted(names)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        playbooks = {path.stem for path in (ROOT / "playbooks").glob("*.yml")}
        for written in (name, name.replace("_", "-")):
            if written in self.commands:
                return self.commands[written]
        if name.replace("-", "_") in playbooks:
            return play.named(name)
        near = meant(name.replace("-", "_"), [*playbooks, *self.commands])
        fail("command_unknown", 2, command=name, meant=near)

    def format_help(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        forms = [self.commands[name].form for name in self.list_commands(context)]
        at = forms.index("ansible ARGUMENTS")
        formatter.write(f"{say('about')}\n\n{say('usage', form=say('form'))}\n\n")
        with formatter.indentation():
            formatter.write_dl([(form, say(form)) for form in [*forms[:at], "NAME", *forms[at:]]], col_max=28)
        formatter.write("\n" + say("environment") + "\n")


def environment_of(words: list[str]) -> tuple[str | None, list[str]]:
    """Take -E NAME out of the words, before or after the command; without it $SHIFTMASTER_ENVIRONMENT counts."""
    if "-E" not in words:
        return os.environ.get("SHIFTMASTER_ENVIRONMENT") or None, words
    at = words.index("-E")
    if at + 1 == len(words):
        fail("environment_unnamed", 2)
    return words[at + 1], words[:at] + words[at + 2 :]


def main(argv: list[str]) -> int:
    name, words = environment_of(argv[1:])
    group = Verbs("shiftmaster", context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
    for module in pkgutil.iter_modules(verbs.__path__):
        for command in importlib.import_module(f"{verbs.__name__}.{module.name}").COMMANDS:
            group.add_command(command)
    if words == ["--version"]:
        print(f"ShiftMaster operations {version()}")
        return 0
    given = ["--help"] if words in ([], ["help"]) else words
    try:
        code = group.main(given, "./shiftmaster", "_SHIFTMASTER_COMPLETE", standalone_mode=False, obj=Site(name))
    except click.ClickException as error:
        error.show()
        return 2
    except click.Abort:
        return 130
    return code or 0 if words else 2
