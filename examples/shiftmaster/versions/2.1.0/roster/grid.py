"""The month's grid, put together from few queries."""

import jpholiday
from django.template.loader import get_template
from django.utils import timezone
from django.utils.safestring import mark_safe

from roster.models import Assignment, DayOffRequest, ShiftType, StaffMember


class Day:
    def __init__(self, date, today):
        self.date = date
        self.holiday = jpholiday.is_holiday_name(date) or ""
        self.weekend = date.weekday() >= 5 or bool(self.holiday)
        self.today = date == today
        self.on_duty = 0
        self.at_night = 0
        self.short = False


class Grid:
    def __init__(self, ward, month, may_plan):
        today = timezone.localdate()
        self.days = [Day(date, today) for date in month.days]
        self.shifts = list(ShiftType.objects.all())
        shifts = {shift.pk: shift for shift in self.shifts}
        people = list(StaffMember.objects.filter(ward=ward, active=True))
        taken = {
            (staff, day): shifts.get(shift)
            for staff, day, shift in Assignment.objects.filter(
                staff__ward=ward, staff__active=True, day__range=month.range
            ).values_list("staff_id", "day", "shift_id")
        }
        wishes = {
            (staff, day): state
            for staff, day, state in DayOffRequest.objects.filter(staff__ward=ward, day__range=month.range)
            .exclude(state=DayOffRequest.State.DECLINED)
            .values_list("staff_id", "day", "state")
        }
        # A month has hundreds of cells but few kinds of them: each kind is rendered once.
        template = get_template("roster/_cell.html")
        kinds = {}
        self.rows, self.empty = [], 0
        for person in people:
            cells = []
            for day in self.days:
                shift = taken.get((person.pk, day.date))
                if shift and shift.is_work:
                    day.on_duty += 1
                    day.at_night += shift.at_night
                self.empty += shift is None
                kind = (shift and shift.pk, wishes.get((person.pk, day.date), ""))
                if kind not in kinds:
                    kinds[kind] = template.render({"shift": shift, "wish": kind[1], "may_plan": may_plan}).strip()
                cells.append(kinds[kind])
            self.rows.append((person, mark_safe("".join(cells))))
        for day in self.days:
            day.short = ward.minimum_staff is not None and day.on_duty < ward.minimum_staff
