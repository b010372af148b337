"""Things with a Japanese and an English name."""

from django.db import models
from django.utils.translation import get_language
from django.utils.translation import gettext_lazy as _


class Named(models.Model):
    name = models.CharField(_("name"), max_length=60)
    name_en = models.CharField(_("English name"), max_length=60, blank=True, default="")

    class Meta:
        abstract = True

    def __str__(self):
        return self.name_en if self.name_en and get_language() == "en" else self.name
