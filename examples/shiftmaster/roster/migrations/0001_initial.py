import django.core.validators
import django.db.models.deletion
from django.conf import settings
from django.db import migrations, models


class Migration(migrations.Migration):
    initial = True

    dependencies = [
        migrations.swappable_dependency(settings.AUTH_USER_MODEL),
    ]

    operations = [
        migrations.CreateModel(
            name="ShiftType",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("name", models.CharField(max_length=60, verbose_name="name")),
                ("name_en", models.CharField(blank=True, default="", max_length=60, verbose_name="English name")),
                ("code", models.CharField(max_length=3, unique=True, verbose_name="sign in the grid")),
                ("starts_at", models.TimeField(blank=True, null=True, verbose_name="starts at")),
                ("ends_at", models.TimeField(blank=True, null=True, verbose_name="ends at")),
                ("is_work", models.BooleanField(default=True, verbose_name="is work")),
                ("is_night", models.BooleanField(default=False, verbose_name="night shift")),
                (
                    "tone",
                    models.CharField(
                        choices=[
                            ("sky", "sky"),
                            ("amber", "amber"),
                            ("indigo", "indigo"),
                            ("green", "green"),
                            ("rose", "rose"),
                            ("grey", "grey"),
                        ],
                        default="grey",
                        max_length=8,
                        verbose_name="slot",
                    ),
                ),
                ("position", models.PositiveSmallIntegerField(default=0, verbose_name="position")),
            ],
            options={
                "verbose_name": "shift type",
                "verbose_name_plural": "shift types",
                "ordering": ["position", "code"],
            },
        ),
        migrations.CreateModel(
            name="Ward",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("name", models.CharField(max_length=60, verbose_name="name")),
                ("name_en", models.CharField(blank=True, default="", max_length=60, verbose_name="English name")),
                ("slug", models.SlugField(max_length=30, unique=True, verbose_name="address")),
                ("position", models.PositiveSmallIntegerField(default=0, verbose_name="position")),
                (
                    "handbook",
                    models.FileField(
                        blank=True,
                        upload_to="handbooks/",
                        validators=[django.core.validators.FileExtensionValidator(["pdf"])],
                        verbose_name="handbook (PDF)",
                    ),
                ),
            ],
            options={
                "verbose_name": "ward",
                "verbose_name_plural": "wards",
                "ordering": ["position", "slug"],
            },
        ),
        migrations.CreateModel(
            name="StaffMember",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("name", models.CharField(max_length=60, verbose_name="name")),
                ("name_en", models.CharField(blank=True, default="", max_length=60, verbose_name="English name")),
                ("number", models.CharField(max_length=12, unique=True, verbose_name="staff number")),
                (
                    "grade",
                    models.CharField(
                        choices=[
                            ("head", "Head nurse"),
                            ("senior", "Senior nurse"),
                            ("nurse", "Nurse"),
                            ("assistant", "Assistant"),
                        ],
                        default="nurse",
                        max_length=12,
                        verbose_name="grade",
                    ),
                ),
                ("email", models.EmailField(blank=True, max_length=254, verbose_name="email")),
                ("active", models.BooleanField(default=True, verbose_name="active")),
                ("position", models.PositiveSmallIntegerField(default=0, verbose_name="position")),
                (
                    "user",
                    models.OneToOneField(
                        blank=True,
                        null=True,
                        on_delete=django.db.models.deletion.SET_NULL,
                        related_name="staff_member",
                        to=settings.AUTH_USER_MODEL,
                        verbose_name="login",
                    ),
                ),
                (
                    "ward",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="staff",
                        to="roster.ward",
                        verbose_name="ward",
                    ),
                ),
            ],
            options={
                "verbose_name": "staff member",
                "verbose_name_plural": "staff",
                "ordering": ["position", "number"],
            },
        ),
        migrations.CreateModel(
            name="TaskRun",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("key", models.CharField(db_index=True, max_length=100)),
                ("task", models.CharField(max_length=100)),
                ("task_id", models.CharField(max_length=64)),
                ("started_at", models.DateTimeField()),
                ("finished_at", models.DateTimeField(auto_now_add=True)),
                ("version", models.CharField(max_length=40)),
                ("redelivered", models.BooleanField(default=False)),
                ("effective", models.BooleanField(default=True)),
            ],
            options={
                "verbose_name": "task run",
                "verbose_name_plural": "task runs",
                "indexes": [models.Index(fields=["finished_at"], name="taskrun_finished")],
                "constraints": [
                    models.UniqueConstraint(
                        condition=models.Q(("effective", True)), fields=("task_id",), name="one_effect_a_task"
                    )
                ],
            },
        ),
        migrations.CreateModel(
            name="MailDelivery",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("order", models.UUIDField()),
                ("sent_at", models.DateTimeField(auto_now_add=True)),
                ("staff", models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, to="roster.staffmember")),
            ],
            options={
                "constraints": [models.UniqueConstraint(fields=("order", "staff"), name="one_letter_an_order")],
            },
        ),
        migrations.CreateModel(
            name="DayOffRequest",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("day", models.DateField(verbose_name="day")),
                ("reason", models.CharField(blank=True, max_length=120, verbose_name="reason")),
                (
                    "state",
                    models.CharField(
                        choices=[("open", "open"), ("approved", "approved"), ("declined", "declined")],
                        default="open",
                        max_length=10,
                        verbose_name="state",
                    ),
                ),
                ("created_at", models.DateTimeField(auto_now_add=True)),
                (
                    "staff",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="requests",
                        to="roster.staffmember",
                        verbose_name="staff member",
                    ),
                ),
            ],
            options={
                "verbose_name": "day-off request",
                "verbose_name_plural": "day-off requests",
                "ordering": ["day", "staff"],
                "indexes": [models.Index(fields=["state", "day"], name="request_state_day")],
                "constraints": [models.UniqueConstraint(fields=("staff", "day"), name="one_request_a_day")],
            },
        ),
        migrations.CreateModel(
            name="Assignment",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("day", models.DateField(verbose_name="day")),
                ("updated_at", models.DateTimeField(auto_now=True)),
                (
                    "updated_by",
                    models.ForeignKey(
                        blank=True,
                        null=True,
                        on_delete=django.db.models.deletion.SET_NULL,
                        related_name="+",
                        to=settings.AUTH_USER_MODEL,
                    ),
                ),
                (
                    "shift",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT, to="roster.shifttype", verbose_name="shift"
                    ),
                ),
                (
                    "staff",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE, related_name="assignments", to="roster.staffmember"
                    ),
                ),
            ],
            options={
                "verbose_name": "assignment",
                "verbose_name_plural": "assignments",
                "indexes": [models.Index(fields=["day"], name="assignment_day")],
                "constraints": [models.UniqueConstraint(fields=("staff", "day"), name="one_shift_a_day")],
            },
        ),
        migrations.CreateModel(
            name="MonthPlan",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("month", models.DateField(help_text="The first day of the month.", verbose_name="month")),
                ("draft_asked_at", models.DateTimeField(blank=True, null=True)),
                ("draft_done_at", models.DateTimeField(blank=True, null=True)),
                (
                    "ward",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="plans",
                        to="roster.ward",
                        verbose_name="ward",
                    ),
                ),
            ],
            options={
                "verbose_name": "month's plan",
                "verbose_name_plural": "months' plans",
                "constraints": [models.UniqueConstraint(fields=("ward", "month"), name="one_plan_a_month")],
            },
        ),
    ]
