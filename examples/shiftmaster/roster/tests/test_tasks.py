import uuid
from datetime import date, timedelta
from unittest import mock

from django.core import mail
from django.test import TestCase
from django.utils import timezone

from roster.models import Assignment, DayOffRequest, MailDelivery, TaskRun
from roster.tasks import build_draft, mail_roster, record_run, tidy
from shiftmaster import __version__

from .example import MONTH, Example


class DraftTests(Example, TestCase):
    def cells(self):
        return list(Assignment.objects.order_by("pk").values_list("pk", "staff", "day", "shift"))

    def test_fills_what_is_empty_and_a_second_run_changes_nothing(self):
        self.assertEqual(build_draft(self.ward.pk, str(MONTH)), 3 * 31)
        first = self.cells()
        self.assertEqual({staff for _, staff, _, _ in first}, {person.pk for person in self.staff})
        self.assertEqual(build_draft(self.ward.pk, str(MONTH)), 0)
        self.assertEqual(self.cells(), first)

    def test_keeps_what_people_have_entered(self):
        Assignment.objects.create(staff=self.staff[0], day=date(2026, 5, 9), shift=self.off)
        Assignment.objects.create(staff=self.staff[0], day=date(2026, 5, 10), shift=self.day)
        build_draft(self.ward.pk, str(MONTH))
        entered = Assignment.objects.filter(staff=self.staff[0], day__in=[date(2026, 5, 9), date(2026, 5, 10)])
        self.assertEqual([cell.shift for cell in entered.order_by("day")], [self.off, self.day])

    def test_gives_approved_days_off_and_only_those(self):
        for person, state in zip(self.staff, ("approved", "open", "declined"), strict=True):
            for day in MONTH.days[:7]:
                DayOffRequest.objects.create(staff=person, day=day, state=state)
        build_draft(self.ward.pk, str(MONTH))
        week = Assignment.objects.filter(day__lte=MONTH.days[6])
        worked = [week.filter(staff=person, shift__is_work=True).count() for person in self.staff]
        self.assertEqual(worked[0], 0)
        self.assertTrue(worked[1] and worked[2])


class MailTests(Example, TestCase):
    def test_one_letter_each_however_often_the_task_runs(self):
        Assignment.objects.create(staff=self.staff[0], day=MONTH.first, shift=self.night)
        order = str(uuid.uuid4())
        self.assertEqual(mail_roster(self.ward.pk, str(MONTH), order), 3)
        self.assertEqual(mail_roster(self.ward.pk, str(MONTH), order), 0)
        self.assertEqual(sorted(letter.to[0] for letter in mail.outbox), [f"e{n}@hospital.invalid" for n in range(3)])
        self.assertIn("05/01 (金)  N", mail.outbox[0].body)
        self.assertEqual(mail.outbox[0].subject, "2026-05 の勤務")
        self.assertEqual(mail_roster(self.ward.pk, str(MONTH), str(uuid.uuid4()), "en"), 3)
        self.assertIn("Dear 職員0", mail.outbox[3].body)

    def test_a_refused_letter_is_sent_by_the_next_run(self):
        order = str(uuid.uuid4())
        with mock.patch("roster.tasks.mail.send_mail", side_effect=[1, OSError("refused")]):
            with self.assertRaises(OSError):
                mail_roster.run.__wrapped__(self.ward.pk, str(MONTH), order)
        self.assertEqual(MailDelivery.objects.count(), 1)
        self.assertEqual(mail_roster(self.ward.pk, str(MONTH), order), 2)


class CountedTests(TestCase):
    def test_each_message_is_one_row(self):
        for _ in range(2):
            record_run.apply(kwargs={"key": "k", "seconds": 0.01})
        rows = TaskRun.objects.filter(key="k", task="roster.tasks.record_run", version=__version__)
        self.assertEqual([row.effective for row in rows], [True, True])
        self.assertTrue(all(row.finished_at - row.started_at >= timedelta(seconds=0.01) for row in rows))

    def test_a_message_that_runs_twice_is_seen_and_has_one_effect(self):
        for expected in (True, False):
            done = record_run.apply(kwargs={"key": "k"}, task_id="one-message")
            self.assertIs(done.get(), expected)
        self.assertEqual(sorted(TaskRun.objects.values_list("effective", flat=True)), [False, True])


class TidyTests(Example, TestCase):
    def test_removes_old_rows_only(self):
        for key, age in (("old", 91), ("new", 89)):
            record_run.apply(kwargs={"key": key})
            TaskRun.objects.filter(key=key).update(finished_at=timezone.now() - timedelta(days=age))
        tidy()
        self.assertEqual(list(TaskRun.objects.values_list("key", flat=True)), ["new"])
