from django.db import connection
from django.test import TestCase

from roster.models import Assignment, MonthPlan, ShiftType, TaskRun
from roster.tasks import summarize_month

from .example import MONTH, Example

PAGE = f"/roster/east/{MONTH}/"


class SummaryTests(Example, TestCase):
    def test_hours_and_nights(self):
        for day, shift in zip(MONTH.days, (self.day, self.night, self.night, self.off), strict=False):
            Assignment.objects.create(staff=self.staff[0], day=day, shift=shift)
        for _ in range(2):
            summarize_month.apply(args=[self.ward.pk, str(MONTH)])
        people = MonthPlan.objects.get().summary["people"]
        self.assertEqual([(p["hours"], p["nights"]) for p in people], [(8.5 + 2 * 16.5, 2), (0, 0), (0, 0)])
        self.assertFalse(TaskRun.objects.exists())
        self.client.force_login(self.nurse)
        self.assertContains(self.client.get(PAGE), "41.5 時間、夜勤 2 回")

    def test_counted_with_a_key(self):
        summarize_month.apply(kwargs={"key": "k", "seconds": 0.01})
        self.assertEqual(TaskRun.objects.get(key="k").task, "roster.tasks.summarize_month")


class MarkTests(Example, TestCase):
    def setUp(self):
        self.client.force_login(self.nurse)
        Assignment.objects.create(staff=self.staff[0], day=MONTH.first, shift=self.night)

    def test_days_with_too_few_people_are_marked(self):
        self.assertNotContains(self.client.get(PAGE), 'class="short"')
        self.ward.minimum_staff = 1
        self.ward.save()
        self.assertContains(self.client.get(PAGE), 'class="short"', count=30)

    def test_holidays_are_named(self):
        self.assertContains(self.client.get(PAGE), 'title="こどもの日"', count=1)


class ExpandTests(Example, TestCase):
    def test_rows_are_taken_as_version_2_0_0_writes_them(self):
        # Every column of 2.0.0 and none of 2.1.0's.
        with connection.cursor() as cursor:
            cursor.execute("INSERT INTO roster_ward (slug, name, name_en, position, handbook) VALUES ('n','n','',1,'')")
            cursor.execute("INSERT INTO roster_monthplan (ward_id, month) VALUES (%s, '2026-06-01')", [self.ward.pk])
        self.client.force_login(self.nurse)
        for ward in ("n", "east"):
            self.assertEqual(self.client.get(f"/roster/{ward}/2026-06/").status_code, 200)
        self.assertEqual(ShiftType._meta.get_field("kind").db_default, "")
