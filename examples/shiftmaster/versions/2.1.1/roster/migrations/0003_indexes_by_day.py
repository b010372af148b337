from django.contrib.postgres.operations import AddIndexConcurrently
from django.db import migrations, models


class Migration(migrations.Migration):
    # Built while people go on writing, which PostgreSQL does outside of a transaction only.
    atomic = False

    dependencies = [
        ("roster", "0002_minimum_staff_kind_summary"),
    ]

    operations = [
        AddIndexConcurrently("assignment", models.Index(fields=["shift", "day"], name="assignment_shift_day")),
        AddIndexConcurrently("dayoffrequest", models.Index(fields=["day"], name="request_day")),
    ]
