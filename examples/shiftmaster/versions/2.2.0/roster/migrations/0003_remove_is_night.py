"""Contract: versions before 2.2.0 read and write is_night and cannot run on this schema."""

from django.db import migrations


def fill_kind(apps, schema_editor):
    """What 2.0.0 wrote has no kind yet."""
    types = apps.get_model("roster", "ShiftType").objects.filter(kind="")
    types.filter(is_night=True).update(kind="night")
    types.filter(is_night=False).update(kind="day")


def fill_is_night(apps, schema_editor):
    apps.get_model("roster", "ShiftType").objects.filter(kind="night").update(is_night=True)


class Migration(migrations.Migration):
    dependencies = [("roster", "0002_minimum_staff_kind_summary")]

    operations = [
        # Backwards the column comes back with its default first, then its values.
        migrations.RunPython(fill_kind, fill_is_night),
        migrations.RemoveField("shifttype", "is_night"),
    ]
