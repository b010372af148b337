from django.conf import settings
from django.db import models
from django.utils.translation import gettext_lazy as _

from .named import Named
from .ward import Ward


class StaffMember(Named):
    class Grade(models.TextChoices):
        HEAD = "head", _("Head nurse")
        SENIOR = "senior", _("Senior nurse")
        NURSE = "nurse", _("Nurse")
        ASSISTANT = "assistant", _("Assistant")

    ward = models.ForeignKey(Ward, on_delete=models.PROTECT, related_name="staff", verbose_name=_("ward"))
    number = models.CharField(_("staff number"), max_length=12, unique=True)
    grade = models.CharField(_("grade"), max_length=12, choices=Grade.choices, default=Grade.NURSE)
    email = models.EmailField(_("email"), blank=True)
    active = models.BooleanField(_("active"), default=True)
    position = models.PositiveSmallIntegerField(_("position"), default=0)
    user = models.OneToOneField(
        settings.AUTH_USER_MODEL,
        on_delete=models.SET_NULL,
        null=True,
        blank=True,
        related_name="staff_member",
        verbose_name=_("login"),
    )

    class Meta:
        ordering = ["position", "number"]
        verbose_name = _("staff member")
        verbose_name_plural = _("staff")
