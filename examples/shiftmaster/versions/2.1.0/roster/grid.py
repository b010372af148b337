"""The month's grid, put together from few queries."""

import jpholiday
from django.utils import timezone

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


class Cell:
    __slots__ = ("code", "tone", "wish")

    def __init__(self, shift, wish):
        self.code = shift.code if shift else ""
        self.tone = shift.tone if shift else ""
        self.wish = wish


class Grid:
    def __init__(self, ward, month):
        today = timezone.localdate()
        self.days = [Day(date, today) for date in month.days]
        self.shifts = list(ShiftType.objects.all())
        shifts = {shift.pk: shift for shift in self.shifts}
        people = list(StaffMember.objects.filter(ward=ward, active=True))
        taken = {
            (staff, day): shifts[shift]
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
        self.rows = []
        for person in people:
            cells = []
            for day in self.days:
                shift = taken.get((person.pk, day.date))
                if shift and shift.is_work:
                    day.on_duty += 1
                    day.at_night += shift.at_night
                cells.append(Cell(shift, wishes.get((person.pk, day.date), "")))
            self.rows.append((person, cells))
        for day in self.days:
            day.short = ward.minimum_staff is not None and day.on_duty < ward.minimum_staff
        self.empty = sum(1 for _, cells in self.rows for cell in cells if not cell.code)
