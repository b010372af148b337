from django.contrib import admin

from .models import Shift

admin.site.register(Shift)
