"""Commands of Ansible itself on the hosts of the environment."""

from __future__ import annotations

from ..environment import Site, run
from ..verb import verb


@verb("ansible ARGUMENTS")
def ansible(site: Site, words: list[str]) -> int:
    return run(["ansible", *words], site.environment())


COMMANDS = [ansible]
