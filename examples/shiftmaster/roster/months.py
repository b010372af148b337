"""A month, as the addresses write it: 2026-01."""

import re
from calendar import monthrange
from dataclasses import dataclass
from datetime import date, timedelta

from django.utils import timezone


@dataclass(frozen=True)
class Month:
    year: int
    number: int

    @classmethod
    def parse(cls, text):
        match = re.fullmatch(r"(20\d\d)-(0[1-9]|1[0-2])", text)
        if not match:
            raise ValueError(f"{text!r} is not a month such as 2026-01")
        return cls(int(match[1]), int(match[2]))

    @classmethod
    def current(cls):
        today = timezone.localdate()
        return cls(today.year, today.month)

    def __str__(self):
        return f"{self.year}-{self.number:02}"

    @property
    def first(self):
        return date(self.year, self.number, 1)

    @property
    def last(self):
        return date(self.year, self.number, monthrange(self.year, self.number)[1])

    @property
    def range(self):
        return (self.first, self.last)

    @property
    def days(self):
        return [self.first + timedelta(days=n) for n in range(self.last.day)]

    @property
    def before(self):
        if (self.year, self.number) == (2000, 1):
            return None
        return Month(self.year - 1, 12) if self.number == 1 else Month(self.year, self.number - 1)

    @property
    def after(self):
        if (self.year, self.number) == (2099, 12):
            return None
        return Month(self.year + 1, 1) if self.number == 12 else Month(self.year, self.number + 1)


class MonthConverter:
    """`<month:month>` in addresses."""

    regex = r"20\d\d-(?:0[1-9]|1[0-2])"

    def to_python(self, value):
        return Month.parse(value)

    def to_url(self, value):
        return str(value)
