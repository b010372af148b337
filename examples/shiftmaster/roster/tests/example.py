"""A ward to test with."""

from datetime import time

from django.contrib.auth import get_user_model

from roster.models import ShiftType, StaffMember, Ward
from roster.months import Month

MONTH = Month(2026, 5)


class Example:
    """Mixed into test cases: one ward with three people, one person on another ward, two logins."""

    @classmethod
    def setUpTestData(cls):
        def shift(code, night=False, **values):
            return ShiftType.objects.create(code=code, name=code, **values, **ShiftType.night_values(night))

        cls.day = shift("D", tone="sky", starts_at=time(8, 30), ends_at=time(17), position=1)
        cls.night = shift("N", night=True, tone="indigo", starts_at=time(16, 30), ends_at=time(9), position=2)
        cls.off = shift("-", is_work=False, position=3)
        # Their order is that of neither the keys nor the names.
        cls.ward = Ward.objects.create(slug="east", name="東病棟", name_en="East ward", position=2)
        cls.other_ward = Ward.objects.create(slug="west", name="西病棟", position=1)
        cls.staff = [
            StaffMember.objects.create(
                ward=cls.ward, number=f"E{n}", name=f"職員{n}", position=n, email=f"e{n}@hospital.invalid"
            )
            for n in range(3)
        ]
        cls.stranger = StaffMember.objects.create(ward=cls.other_ward, number="W0", name="他の職員")
        users = get_user_model().objects
        cls.planner = users.create_user("planner", password="irrelevant-1234", is_staff=True)
        cls.nurse = users.create_user("nurse", password="irrelevant-1234")
        cls.staff[1].user = cls.nurse
        cls.staff[1].save()
