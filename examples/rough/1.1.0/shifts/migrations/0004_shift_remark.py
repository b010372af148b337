from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("shifts", "0003_shift_note_again")]

    operations = [
        migrations.AddField(model_name="shift", name="remark", field=models.CharField(max_length=200, null=True)),
    ]
