from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("shifts", "0002_shift_note")]

    operations = [
        migrations.AddField(
            model_name="shift",
            name="note",
            field=models.CharField(max_length=200, blank=True, default="", db_default=""),
        ),
    ]
