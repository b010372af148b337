from unittest import mock

from django.db import OperationalError
from django.test import TestCase, override_settings

from health import checks
from shiftmaster import __version__

GOOD = {name: (lambda: None) for name in ("cache", "broker", "worker")}


def broken(text):
    def check():
        raise OperationalError(text)

    return check


@override_settings(RELEASE="20260101T000000Z-abcdefg")
class HealthTests(TestCase):
    def ask(self, address, **replaced):
        with mock.patch.dict(checks.ALL, {**GOOD, **replaced}), mock.patch.dict(checks.LIGHT, replaced):
            return self.client.get(address)

    def test_light(self):
        answer = self.ask("/health/")
        self.assertEqual(answer.status_code, 200)
        self.assertEqual(list(answer.json()["checks"]), ["database"])
        self.assertIn("no-store", answer["Cache-Control"])
        self.assertEqual(self.ask("/health/", database=broken("gone")).status_code, 503)

    def test_deep_tells_each_check(self):
        answer = self.ask("/health/deep/")
        body = answer.json()
        self.assertEqual(answer.status_code, 200)
        self.assertEqual(
            (body["status"], body["version"], body["release"]), ("healthy", __version__, "20260101T000000Z-abcdefg")
        )
        self.assertEqual(list(body["checks"]), ["database", "cache", "broker", "worker", "migrations"])
        for result in body["checks"].values():
            self.assertEqual(result["status"], "healthy")
            self.assertGreaterEqual(result["latency_ms"], 0)
            self.assertNotIn("error", result)

    def test_one_failed_check_is_503_and_its_error_holds_no_password(self):
        for name in ("database", "cache", "broker", "worker", "migrations"):
            answer = self.ask("/health/deep/", **{name: broken("no redis://user:hidden@host:1/0\nsecond line")})
            self.assertEqual(answer.status_code, 503, name)
            body = answer.json()
            self.assertEqual(body["status"], "unhealthy")
            failed = {key: result for key, result in body["checks"].items() if result["status"] != "healthy"}
            self.assertEqual(list(failed), [name])
            self.assertEqual(failed[name]["error"], "OperationalError: no redis://…@host:1/0")

    def test_checks_can_be_left_out_by_name_only(self):
        answer = self.ask("/health/deep/?skip=worker,cache", worker=broken("no"), cache=broken("no"))
        self.assertEqual(answer.status_code, 200)
        self.assertEqual(list(answer.json()["checks"]), ["database", "broker", "migrations"])
        self.assertEqual(self.ask("/health/deep/?skip=wroker").status_code, 400)

    def test_a_missing_migration_is_named(self):
        from django.db.migrations.recorder import MigrationRecorder

        last = MigrationRecorder.Migration.objects.filter(app="roster").order_by("name").last()
        MigrationRecorder.Migration.objects.filter(pk=last.pk).delete()
        result = self.ask("/health/deep/").json()["checks"]["migrations"]
        self.assertEqual(result["error"], f"LookupError: 1 not applied: roster.{last.name}")
        # A schema that is ahead, as after a rollback of the code, is healthy.
        MigrationRecorder.Migration.objects.create(app="roster", name=last.name, applied=last.applied)
        MigrationRecorder.Migration.objects.create(app="roster", name="0999_later", applied=last.applied)
        self.assertEqual(self.ask("/health/deep/").status_code, 200)
