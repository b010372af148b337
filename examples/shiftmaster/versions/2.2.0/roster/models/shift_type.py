from django.contrib import admin
from django.db import models
from django.utils.translation import gettext_lazy as _

from .named import Named


class ShiftType(Named):
    class Tone(models.TextChoices):
        SKY = "sky", _("sky")
        AMBER = "amber", _("amber")
        INDIGO = "indigo", _("indigo")
        GREEN = "green", _("green")
        ROSE = "rose", _("rose")
        GREY = "grey", _("grey")

    class Kind(models.TextChoices):
        DAY = "day", _("by day")
        NIGHT = "night", _("at night")

    code = models.CharField(_("sign in the grid"), max_length=3, unique=True)
    starts_at = models.TimeField(_("starts at"), null=True, blank=True)
    ends_at = models.TimeField(_("ends at"), null=True, blank=True)
    is_work = models.BooleanField(_("is work"), default=True)
    kind = models.CharField(_("kind"), max_length=8, choices=Kind.choices, blank=True, default="", db_default="")
    tone = models.CharField(_("slot"), max_length=8, choices=Tone.choices, default=Tone.GREY)
    position = models.PositiveSmallIntegerField(_("position"), default=0)

    class Meta:
        ordering = ["position", "code"]
        verbose_name = _("shift type")
        verbose_name_plural = _("shift types")

    @property
    @admin.display(boolean=True, description=_("night shift"))
    def at_night(self):
        return self.kind == self.Kind.NIGHT

    @classmethod
    def night_values(cls, at_night):
        """The columns' values that say whether a shift is at night."""
        return {"kind": cls.Kind.NIGHT if at_night else cls.Kind.DAY}
