from django.db import models
from django.db.models import Q
from django.utils.translation import gettext_lazy as _

from .staff import StaffMember
from .ward import Ward


class MonthPlan(models.Model):
    """What is known about a ward's month as a whole: whether a draft is being built, and since when there is one."""

    ward = models.ForeignKey(Ward, on_delete=models.CASCADE, related_name="plans", verbose_name=_("ward"))
    month = models.DateField(_("month"), help_text=_("The first day of the month."))
    draft_asked_at = models.DateTimeField(null=True, blank=True)
    draft_done_at = models.DateTimeField(null=True, blank=True)
    # {"made_at": …, "people": [{"staff": id, "hours": …, "nights": …}]}; none until somebody asks for it.
    summary = models.JSONField(null=True, blank=True, editable=False)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["ward", "month"], name="one_plan_a_month")]
        verbose_name = _("month's plan")
        verbose_name_plural = _("months' plans")

    def __str__(self):
        return f"{self.ward} {self.month:%Y-%m}"

    @property
    def drafting(self):
        return bool(self.draft_asked_at and (not self.draft_done_at or self.draft_done_at < self.draft_asked_at))


class MailDelivery(models.Model):
    """One letter of one order to mail a roster: what has been sent is not sent again when the task is."""

    order = models.UUIDField()
    staff = models.ForeignKey(StaffMember, on_delete=models.CASCADE)
    sent_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["order", "staff"], name="one_letter_an_order")]


class TaskRun(models.Model):
    """One finished execution of a task that is counted: rows of a key = how often it ran to its end."""

    key = models.CharField(max_length=100, db_index=True)
    task = models.CharField(max_length=100)
    task_id = models.CharField(max_length=64)
    started_at = models.DateTimeField()
    finished_at = models.DateTimeField(auto_now_add=True)
    version = models.CharField(max_length=40)
    redelivered = models.BooleanField(default=False)
    # Only the first execution of a message may have an effect; the constraint decides which one it is.
    effective = models.BooleanField(default=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["task_id"], condition=Q(effective=True), name="one_effect_a_task")
        ]
        indexes = [models.Index(fields=["finished_at"], name="taskrun_finished")]
        verbose_name = _("task run")
        verbose_name_plural = _("task runs")

    def __str__(self):
        return f"{self.task} {self.key}"
