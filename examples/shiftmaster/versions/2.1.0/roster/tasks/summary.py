"""Hours and nights of each person in a ward's month. New in 2.1.0: a worker of 2.0.0 does not know this task."""

import time
from collections import defaultdict
from datetime import date, datetime, timedelta

from celery import shared_task
from django.utils import timezone

from roster.models import Assignment, MonthPlan, StaffMember
from roster.months import Month

from .counted import count
from .retry import ON_LOST_DATABASE


def hours(shift):
    if not (shift.is_work and shift.starts_at and shift.ends_at):
        return 0.0
    start, end = (datetime.combine(date.min, at) for at in (shift.starts_at, shift.ends_at))
    return ((end - start) % timedelta(days=1)).total_seconds() / 3600


def summary(ward_id, month):
    worked, nights = defaultdict(float), defaultdict(int)
    rows = Assignment.objects.filter(staff__ward_id=ward_id, staff__active=True, day__range=month.range)
    for row in rows.select_related("shift"):
        worked[row.staff_id] += hours(row.shift)
        nights[row.staff_id] += row.shift.at_night
    people = StaffMember.objects.filter(ward_id=ward_id, active=True)
    return [
        {"staff": person.pk, "name": person.name, "hours": round(worked[person.pk], 1), "nights": nights[person.pk]}
        for person in people
    ]


@shared_task(bind=True, name="roster.tasks.summarize_month", **ON_LOST_DATABASE)
def summarize_month(self, ward_id=None, month=None, key=None, seconds=0):
    """Store the summary, which is the same however often it is made. With a key it is counted as record_run is."""
    started_at = timezone.now()
    time.sleep(float(seconds))
    if ward_id is not None:
        month = Month.parse(month)
        made = {"made_at": timezone.now().isoformat(timespec="seconds"), "people": summary(ward_id, month)}
        MonthPlan.objects.update_or_create(ward_id=ward_id, month=month.first, defaults={"summary": made})
    if key:
        count(self, key, started_at)
