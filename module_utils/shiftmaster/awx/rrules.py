"""Recurrences (RFC 5545) as AWX takes them: built of a few words, checked by AWX's own rules, and their next times.

Only what is built here is understood: every so many minutes; or every day, on days of the week, on a day of the month,
at one time of the day.
"""

from __future__ import annotations

import datetime
import re
import zoneinfo

DAYS = ("MO", "TU", "WE", "TH", "FR", "SA", "SU")
FREQUENCIES = {"minutes": "MINUTELY", "daily": "DAILY", "weekly": "WEEKLY", "monthly": "MONTHLY"}
# Those that cron supports, too.
MINUTES = (5, 10, 15, 20, 30)
# When the rule begins to count. A constant: today's date would be another rule every day.
BEGIN = "20260101"
FORM = re.compile(r"DTSTART;TZID=(?P<zone>[A-Za-z0-9_+/-]+):(?P<start>\d{8}T\d{6}) RRULE:(?P<rule>[A-Z0-9=,;-]+)")
# What AWX refuses, although the standard knows it (its API's validation of schedules).
UNSUPPORTED = ("BYYEARDAY", "BYWEEKNO", "EXDATE", "RDATE")


def wish_problems(wish):
    """What is wrong with {frequency, at, every, days, monthday}, as sentences."""
    problems, frequency = [], wish.get("frequency")
    if frequency not in FREQUENCIES:
        problems.append("frequency=%s is none of: %s" % (frequency, ", ".join(FREQUENCIES)))
    if (frequency == "minutes") != ("every" in wish) or wish.get("every", 5) not in MINUTES:
        problems.append("every=%s: minutes, and nothing else, has one of %s" % (wish.get("every"), MINUTES))
    if frequency != "minutes" and not re.fullmatch(r"([01]\d|2[0-3]):[0-5]\d", str(wish.get("at", ""))):
        problems.append("at=%s is no time of day, as in 02:30" % wish.get("at"))
    days = wish.get("days") or []
    if (frequency == "weekly") != bool(days) or [day for day in days if day not in DAYS]:
        problems.append("days=%s: weekly, and nothing else, has some of: %s" % (",".join(days), ", ".join(DAYS)))
    monthday = wish.get("monthday")
    # A month without the day has no run; so only the days that every month has.
    if (frequency == "monthly") != (monthday is not None) or monthday is not None and monthday not in range(1, 29):
        problems.append("monthday=%s: monthly, and nothing else, has one of 1 to 28" % monthday)
    return problems


def build(wish, timezone):
    """The rule in AWX's form. The wish has no problems."""
    rule = ["FREQ=" + FREQUENCIES[wish["frequency"]], "INTERVAL=%d" % wish.get("every", 1)]
    if wish.get("days"):
        rule.append("BYDAY=" + ",".join(sorted(wish["days"], key=DAYS.index)))
    if wish.get("monthday"):
        rule.append("BYMONTHDAY=%d" % wish["monthday"])
    return "DTSTART;TZID=%s:%sT%s00 RRULE:%s" % (
        timezone,
        BEGIN,
        wish.get("at", "00:00").replace(":", ""),
        ";".join(rule),
    )


def parse(text):
    """The zone, the first time and the parts of a rule; ValueError where it has another form."""
    match = FORM.fullmatch(text)
    if not match:
        raise ValueError("it is not of the form DTSTART;TZID=<zone>:<date>T<time> RRULE:<rule>")
    parts = [part.partition("=")[::2] for part in match["rule"].split(";")]
    if len(dict(parts)) < len(parts):
        raise ValueError("a part of it is there twice")
    try:
        zone = zoneinfo.ZoneInfo(match["zone"])
    except (zoneinfo.ZoneInfoNotFoundError, ValueError):
        raise ValueError("there is no time zone %s" % match["zone"])
    return zone, datetime.datetime.strptime(match["start"], "%Y%m%dT%H%M%S"), dict(parts)


def problems(text):
    """Why AWX would refuse the rule, or nobody could mean it."""
    try:
        rule = parse(text)[2]
    except ValueError as error:
        return [str(error)]
    found = ["AWX does not take %s" % name for name in UNSUPPORTED if name in text]
    if rule.get("FREQ") not in FREQUENCIES.values():
        found.append("FREQ=%s is none of: %s" % (rule.get("FREQ"), ", ".join(FREQUENCIES.values())))
    if not re.fullmatch(r"[1-9]\d{0,2}", rule.get("INTERVAL", "")):
        found.append("AWX wants an INTERVAL")
    if "COUNT" in rule and ("UNTIL" in rule or not re.fullmatch(r"[1-9]\d{0,2}", rule["COUNT"])):
        found.append("AWX takes a COUNT up to 999, and none next to UNTIL")
    found += ["BYDAY=%s is no day of the week" % day for day in rule.get("BYDAY", "MO").split(",") if day not in DAYS]
    if not re.fullmatch(r"[1-9]|1\d|2[0-8]", rule.get("BYMONTHDAY", "1")):
        found.append("BYMONTHDAY=%s is no day that every month has" % rule["BYMONTHDAY"])
    return found


def next_timestamps(text, after, count=1):
    """The next times after a time (with its zone) of a rule that build() makes."""
    zone, start, rule = parse(text)
    if rule["FREQ"] == FREQUENCIES["minutes"]:
        step, first = 60 * int(rule["INTERVAL"]), start.replace(tzinfo=zone).timestamp()
        number = max(0, (after.timestamp() - first) // step + 1)
        return [datetime.datetime.fromtimestamp(first + step * (number + more), zone) for more in range(count)]
    found, day = [], max(start.date(), after.astimezone(zone).date())
    while len(found) < count:
        timestamp = datetime.datetime.combine(day, start.time(), zone)
        if (
            timestamp > after
            and DAYS[day.weekday()] in rule.get("BYDAY", ",".join(DAYS)).split(",")
            and str(day.day) == rule.get("BYMONTHDAY", str(day.day))
        ):
            found.append(timestamp)
        day += datetime.timedelta(days=1)
    return found
