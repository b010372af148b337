"""Fills an empty installation with two wards to play with. A second run changes nothing."""

import os
from datetime import time, timedelta

from django.contrib.auth import get_user_model
from django.contrib.auth.password_validation import validate_password
from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandError
from django.db import transaction
from django.utils import timezone

from roster.models import DayOffRequest, ShiftType, StaffMember, Ward
from roster.months import Month
from roster.tasks import build_draft

WARDS = [("east-3", "3階東病棟", "Ward 3 East"), ("west-4", "4階西病棟", "Ward 4 West"), ("icu", "集中治療室", "ICU")]
SHIFTS = [
    # code, name, English name, start, end, work, night, tone
    ("日", "日勤", "Day", time(8, 30), time(17, 0), True, False, "sky"),
    ("準", "準夜勤", "Evening", time(16, 30), time(1, 0), True, False, "amber"),
    ("深", "深夜勤", "Night", time(0, 30), time(9, 0), True, True, "indigo"),
    ("休", "休み", "Off", None, None, False, False, "grey"),
    ("年", "年次休暇", "Annual leave", None, None, False, False, "green"),
]
STAFF = [
    ("佐藤 由美", "Yumi Sato"),
    ("鈴木 健一", "Kenichi Suzuki"),
    ("高橋 恵", "Megumi Takahashi"),
    ("田中 大輔", "Daisuke Tanaka"),
    ("伊藤 さくら", "Sakura Ito"),
    ("渡辺 翔", "Sho Watanabe"),
    ("山本 真理", "Mari Yamamoto"),
    ("中村 直樹", "Naoki Nakamura"),
    ("小林 美穂", "Miho Kobayashi"),
    ("加藤 亮", "Ryo Kato"),
    ("吉田 香織", "Kaori Yoshida"),
    ("山田 拓也", "Takuya Yamada"),
]


class Command(BaseCommand):
    help = (
        "Wards, staff, shift types, two logins (demo, nurse) and a first draft. DEMO_PASSWORD is the logins' password."
    )

    def handle(self, *args, **options):
        password = os.environ.get("DEMO_PASSWORD", "")
        if not password:
            raise CommandError("DEMO_PASSWORD is not set; the demo's logins have no default password.")
        try:
            validate_password(password)
        except ValidationError as exc:
            raise CommandError(f"DEMO_PASSWORD is too weak: {' '.join(exc.messages)}") from None
        with transaction.atomic():
            made = self.rows(password)
        month = Month.current()
        for ward in Ward.objects.filter(slug__in=[slug for slug, *_ in WARDS]):
            made += build_draft(ward.pk, str(month))
        self.stdout.write(f"{made} rows added." if made else "Nothing to add.")

    def rows(self, password):
        made = []
        for position, (code, name, name_en, starts_at, ends_at, work, night, tone) in enumerate(SHIFTS):
            values = {
                "name": name,
                "name_en": name_en,
                "starts_at": starts_at,
                "ends_at": ends_at,
                "is_work": work,
                "tone": tone,
                "position": position,
                **ShiftType.night_values(night),
            }
            made.append(ShiftType.objects.get_or_create(code=code, defaults=values)[1])
        grades = ["head", "senior", "senior", *["nurse"] * 7, "assistant", "assistant"]
        for ward_position, (slug, name, name_en) in enumerate(WARDS):
            ward, new = Ward.objects.get_or_create(
                slug=slug, defaults={"name": name, "name_en": name_en, "position": ward_position}
            )
            made.append(new)
            # Other people on each ward: the list of names, turned.
            names = STAFF[ward_position * 4 :] + STAFF[: ward_position * 4]
            for position, ((person, person_en), grade) in enumerate(zip(names, grades, strict=True)):
                number = f"N{ward_position + 1}{position + 1:02}"
                values = {
                    "ward": ward,
                    "name": person,
                    "name_en": person_en,
                    "grade": grade,
                    "position": position,
                    "email": f"{number.lower()}@hospital.invalid",
                }
                made.append(StaffMember.objects.get_or_create(number=number, defaults=values)[1])
        made.append(self.login("demo", password, is_staff=True, is_superuser=True))
        made.append(self.login("nurse", password))
        nurse = StaffMember.objects.get(number="N105")
        if nurse.user is None:
            nurse.user = get_user_model().objects.get(username="nurse")
            nurse.save(update_fields=["user"])
        if not DayOffRequest.objects.exists():
            today = timezone.localdate()
            for number, days, state in (("N105", 6, "open"), ("N107", 9, "approved"), ("N203", 12, "open")):
                person = StaffMember.objects.get(number=number)
                DayOffRequest.objects.create(staff=person, day=today + timedelta(days=days), state=state)
                made.append(True)
        return sum(made)

    def login(self, username, password, **flags):
        """A login; its password is set again only when it differs, since that ends its sessions."""
        user, new = get_user_model().objects.get_or_create(username=username, defaults=flags)
        if new or not user.check_password(password):
            user.set_password(password)
            user.save(update_fields=["password"])
        return new
