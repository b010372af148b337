from django.conf import settings
from django.db import models
from django.utils.translation import gettext_lazy as _

from .shift_type import ShiftType
from .staff import StaffMember


class Assignment(models.Model):
    """One cell of the grid."""

    staff = models.ForeignKey(StaffMember, on_delete=models.CASCADE, related_name="assignments")
    day = models.DateField(_("day"))
    shift = models.ForeignKey(ShiftType, on_delete=models.PROTECT, verbose_name=_("shift"))
    updated_at = models.DateTimeField(auto_now=True)
    updated_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.SET_NULL, null=True, blank=True, related_name="+"
    )

    class Meta:
        # The constraint's index serves the month's page: staff of the ward, then a range of days.
        constraints = [models.UniqueConstraint(fields=["staff", "day"], name="one_shift_a_day")]
        indexes = [
            models.Index(fields=["day"], name="assignment_day"),
            models.Index(fields=["shift", "day"], name="assignment_shift_day"),
        ]
        verbose_name = _("assignment")
        verbose_name_plural = _("assignments")

    def __str__(self):
        return f"{self.day} {self.staff}: {self.shift.code}"


class DayOffRequest(models.Model):
    class State(models.TextChoices):
        OPEN = "open", _("open")
        APPROVED = "approved", _("approved")
        DECLINED = "declined", _("declined")

    staff = models.ForeignKey(
        StaffMember, on_delete=models.CASCADE, related_name="requests", verbose_name=_("staff member")
    )
    day = models.DateField(_("day"))
    reason = models.CharField(_("reason"), max_length=120, blank=True)
    state = models.CharField(_("state"), max_length=10, choices=State.choices, default=State.OPEN)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["day", "staff"]
        constraints = [models.UniqueConstraint(fields=["staff", "day"], name="one_request_a_day")]
        indexes = [
            models.Index(fields=["state", "day"], name="request_state_day"),
            models.Index(fields=["day"], name="request_day"),
        ]
        verbose_name = _("day-off request")
        verbose_name_plural = _("day-off requests")

    def __str__(self):
        return f"{self.day} {self.staff}"
