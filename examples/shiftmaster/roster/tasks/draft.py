"""Builds the draft of a ward's month."""

import logging

from celery import shared_task
from django.db import transaction
from django.utils import timezone

from roster.models import Assignment, DayOffRequest, MonthPlan, ShiftType, StaffMember
from roster.months import Month

from .retry import ON_LOST_DATABASE

logger = logging.getLogger(__name__)


def turns(shifts):
    """The round that everybody walks: two days, an evening, a night, then two days off."""
    work = [shift for shift in shifts if shift.is_work]
    off = [shift for shift in shifts if not shift.is_work]
    days = [shift for shift in work if not shift.at_night]
    nights = [shift for shift in work if shift.at_night]
    if not days or not off:
        return []
    return [days[0], days[0], *days[1:2], *nights[:1], off[0], off[0]]


@shared_task(name="roster.tasks.build_draft", **ON_LOST_DATABASE)
def build_draft(ward_id, month):
    """Fill the empty cells. What people have entered stays, so a second run of the task changes nothing."""
    month = Month.parse(month)
    with transaction.atomic():
        plan, _ = MonthPlan.objects.get_or_create(ward_id=ward_id, month=month.first)
        # Two runs at once would both look at the same empty cells.
        MonthPlan.objects.select_for_update().get(pk=plan.pk)
        shifts = list(ShiftType.objects.all())
        round_ = turns(shifts)
        off = next((shift for shift in shifts if not shift.is_work), None)
        staff = list(StaffMember.objects.filter(ward_id=ward_id, active=True))
        wished = set(
            DayOffRequest.objects.filter(staff__in=staff, day__range=month.range, state="approved").values_list(
                "staff_id", "day"
            )
        )
        taken = set(Assignment.objects.filter(staff__in=staff, day__range=month.range).values_list("staff_id", "day"))
        new = []
        for index, person in enumerate(staff):
            for day in month.days:
                if (person.pk, day) in taken or not round_:
                    continue
                shift = off if (person.pk, day) in wished else round_[(day.toordinal() + index) % len(round_)]
                new.append(Assignment(staff=person, day=day, shift=shift))
        Assignment.objects.bulk_create(new, ignore_conflicts=True)
        MonthPlan.objects.filter(pk=plan.pk).update(draft_done_at=timezone.now())
    logger.info("draft of ward %s for %s: %d cells filled", ward_id, month, len(new))
    return len(new)
