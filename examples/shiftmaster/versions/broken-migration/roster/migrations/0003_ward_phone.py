from django.db import migrations, models


class Migration(migrations.Migration):
    # Broken on purpose: the column is added twice, and without a transaction the first one stays.
    atomic = False

    dependencies = [("roster", "0002_minimum_staff_kind_summary")]

    operations = [
        migrations.AddField("ward", "phone", models.CharField("telephone", max_length=20, null=True, blank=True)),
        migrations.AddField("ward", "phone", models.CharField("telephone", max_length=20, null=True, blank=True)),
    ]
