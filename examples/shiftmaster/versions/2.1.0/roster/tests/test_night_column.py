"""As long as is_night is there, versions 2.0.0 and 2.1.0 understand each other's rows. Goes with the column."""

from django.db import connection
from django.test import TestCase

from roster.models import ShiftType


class NightColumnTests(TestCase):
    def test_a_night_shift_of_2_0_0_is_one_here(self):
        with connection.cursor() as cursor:
            cursor.execute(
                "INSERT INTO roster_shifttype (name, name_en, code, is_work, is_night, tone, position)"
                " VALUES ('n', '', 'n', TRUE, TRUE, 'sky', 1)"
            )
        shift = ShiftType.objects.get(code="n")
        self.assertEqual((shift.kind, shift.at_night), ("", True))

    def test_a_night_shift_of_here_is_one_in_2_0_0(self):
        for night in (True, False):
            self.assertEqual(ShiftType.night_values(night)["is_night"], night)
