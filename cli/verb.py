"""A command of `./shiftmaster` whose words go on to Ansible, which has options of its own."""

from __future__ import annotations

import click

from .environment import Site
from .texts import say


class Verb(click.Command):
    """form: the command's name and its values, which is also the key of its help in the catalogue."""

    form: str

    def format_help(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write(f"{say('usage', form=self.form)}\n\n  {say(self.form)}\n")


def verb(form: str):
    """Make a click command of a function of (site, words), which returns the exit code.

    site.environment() is that of Ansible; a name of an inventory that does not exist ends the program there.
    """

    def decorate(function):
        settings = {"ignore_unknown_options": True, "help_option_names": ["--help"]}

        @click.command(form.split()[0], cls=Verb, context_settings=settings)
        @click.argument("words", nargs=-1, type=click.UNPROCESSED)
        @click.pass_obj
        def command(site: Site, words: tuple[str, ...]) -> int:
            return function(site, list(words))

        command.form = form
        return command

    return decorate
