from django.db import models


class Shift(models.Model):
    staff = models.CharField(max_length=50)
    day = models.DateField()
    kind = models.CharField(max_length=4)
    note = models.CharField(max_length=200, blank=True, default="", db_default="")
    remark = models.CharField(max_length=200, null=True)
