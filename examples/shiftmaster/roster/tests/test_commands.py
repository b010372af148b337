import io
import json
import os
from unittest import mock

from django.contrib.auth import get_user_model
from django.core.management import CommandError, call_command
from django.test import TestCase

from roster.models import Assignment, ShiftType, StaffMember, TaskRun, Ward

PASSWORD = "a-long-demo-phrase"


class SeedTests(TestCase):
    def seed(self, password):
        out = io.StringIO()
        with mock.patch.dict(os.environ, {"DEMO_PASSWORD": password}):
            call_command("seed_demo", stdout=out)
        return out.getvalue()

    def test_fills_once_and_a_second_run_adds_nothing(self):
        self.assertRegex(self.seed(PASSWORD), r"^\d+ rows added")
        counts = [model.objects.count() for model in (Ward, StaffMember, ShiftType, Assignment, get_user_model())]
        self.assertEqual(counts[:3], [3, 36, 5])
        self.assertTrue(self.client.login(username="demo", password=PASSWORD))
        hashes = list(get_user_model().objects.values_list("password", flat=True))
        self.assertEqual(self.seed(PASSWORD), "Nothing to add.\n")
        after = [model.objects.count() for model in (Ward, StaffMember, ShiftType, Assignment, get_user_model())]
        self.assertEqual(after, counts)
        # Setting a password again would log its user out.
        self.assertEqual(list(get_user_model().objects.values_list("password", flat=True)), hashes)

    def test_has_no_default_password_and_takes_no_weak_one(self):
        for password, words in (("", "not set"), ("password123", "too weak")):
            with self.assertRaisesRegex(CommandError, words):
                self.seed(password)
        self.assertFalse(get_user_model().objects.exists())


class TaskRunsTests(TestCase):
    def test_report_counts_runs_of_the_prefix_only(self):
        for key, task_id in (("a-0", "1"), ("a-1", "2"), ("a-1", "3"), ("ab-0", "4")):
            TaskRun.objects.create(key=key, task_id=task_id, task="t", started_at="2026-01-01T00:00Z", version="x")
        out = io.StringIO()
        call_command("task_runs", "report", "a", stdout=out)
        self.assertEqual(json.loads(out.getvalue()), {"runs": {"a-0": 1, "a-1": 2}, "total": 3, "twice": ["a-1"]})
