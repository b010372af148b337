"""What the tools of the backup say beside their exit codes, which answer 0 for damage that loses data.

Each reader takes what a tool wrote and returns a Verdict. Only what is known to be said of something whole is good: an
empty answer, an unknown line or one that stops in the middle is not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Iterable, NamedTuple


class Problem(NamedTuple):
    code: str  # A word that stays the same, for tests and conditions.
    what: str  # A sentence for the one who reads the report.
    where: str = ""  # The backup, file or segment that it concerns; "" is the whole.


@dataclass(frozen=True)
class Verdict:
    good: bool
    problems: tuple = ()

    def concerning(self, places: Iterable) -> Verdict:
        """Return the same without the problems of other places: an old damaged backup does not make today's bad."""
        return verdict([problem for problem in self.problems if not problem.where or problem.where in set(places)])

    def __str__(self) -> str:
        return "; ".join(problem.what for problem in self.problems) or "good"


def verdict(problems: Iterable) -> Verdict:
    """Return a Verdict that is good where there is no problem."""
    found = tuple(dict.fromkeys(problems))
    return Verdict(not found, found)


def both(*verdicts) -> Verdict:
    """Return what several verdicts say together."""
    found = verdict(problem for one in verdicts for problem in one.problems)
    return Verdict(found.good and all(one.good for one in verdicts), found.problems)
