from django.core.validators import FileExtensionValidator
from django.db import models
from django.utils.translation import gettext_lazy as _

from .named import Named


class Ward(Named):
    slug = models.SlugField(_("address"), max_length=30, unique=True)
    position = models.PositiveSmallIntegerField(_("position"), default=0)
    minimum_staff = models.PositiveSmallIntegerField(
        _("people needed each day"), null=True, blank=True, help_text=_("Days with fewer are marked in the roster.")
    )
    phone = models.CharField(_("telephone"), max_length=20, null=True, blank=True)
    handbook = models.FileField(
        _("handbook (PDF)"), upload_to="handbooks/", blank=True, validators=[FileExtensionValidator(["pdf"])]
    )

    class Meta:
        ordering = ["position", "slug"]
        verbose_name = _("ward")
        verbose_name_plural = _("wards")
