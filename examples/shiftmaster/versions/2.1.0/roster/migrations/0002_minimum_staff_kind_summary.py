from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("roster", "0001_initial"),
    ]

    operations = [
        migrations.AddField(
            model_name="monthplan",
            name="summary",
            field=models.JSONField(blank=True, editable=False, null=True),
        ),
        migrations.AddField(
            model_name="shifttype",
            name="kind",
            field=models.CharField(
                blank=True,
                choices=[("day", "by day"), ("night", "at night")],
                db_default="",
                default="",
                max_length=8,
                verbose_name="kind",
            ),
        ),
        migrations.AddField(
            model_name="ward",
            name="minimum_staff",
            field=models.PositiveSmallIntegerField(
                blank=True,
                help_text="Days with fewer are marked in the roster.",
                null=True,
                verbose_name="people needed each day",
            ),
        ),
    ]
