"""The settings, each time in a fresh interpreter with an environment of its own."""

import os
import subprocess
import sys
from pathlib import Path
from unittest import TestCase

ROOT = Path(__file__).resolve().parents[2]
PRODUCTION = {
    "DJANGO_SETTINGS_MODULE": "shiftmaster.settings",
    "DJANGO_SECRET_KEY": "Zk3uT0sYwq8RAw4GdXU1mP9hVbNcLxJ5eQi7oKfE2tDrSaHgWyMn",
    "DJANGO_ALLOWED_HOSTS": "shift.example",
    "DB_NAME": "shiftmaster",
    "DB_USER": "shiftmaster",
    "DB_PASSWORD": "not-a-real-one",
    "CACHE_URL": "redis://127.0.0.1/1",
    "CELERY_BROKER_URL": "redis://127.0.0.1/0",
    "HTTPS_ENABLED": "true",
}


def run(*arguments, **changes):
    environment = {"PATH": os.environ["PATH"], **PRODUCTION, **changes}
    environment = {name: value for name, value in environment.items() if value is not None}
    return subprocess.run(
        [sys.executable, "-B", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60
    )


class EnvironmentTests(TestCase):
    def test_check_for_deployment_has_nothing_to_say(self):
        done = run("manage.py", "check", "--deploy", "--fail-level", "WARNING")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("no issues", done.stdout)

    def test_all_missing_names_are_told_at_once(self):
        done = run("manage.py", "check", DJANGO_SECRET_KEY=None, DB_PASSWORD="  ")
        self.assertNotEqual(done.returncode, 0)
        last = done.stderr.strip().splitlines()[-1]
        self.assertIn("ImproperlyConfigured", last)
        self.assertIn("does not set DJANGO_SECRET_KEY, DB_PASSWORD.", last)

    def test_a_wrong_value_is_told_with_its_name(self):
        for name, value in (("HTTPS_ENABLED", "maybe"), ("EMAIL_PORT", "smtp")):
            done = run("manage.py", "check", **{name: value})
            self.assertIn(f"ImproperlyConfigured: {name} must be", done.stderr)

    def test_log_lines_have_the_agreed_form(self):
        done = run("-c", "import django, logging; django.setup(); logging.getLogger('a.b').error('text')")
        self.assertRegex(done.stderr, r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} \[ERROR\] a\.b: text\n$")
