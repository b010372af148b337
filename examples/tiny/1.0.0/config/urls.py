from pathlib import Path

from django.contrib.auth.models import User
from django.http import HttpResponse
from django.urls import path

VERSION = (Path(__file__).resolve().parent.parent / "VERSION").read_text().strip()


def hello(request):
    return HttpResponse(f"<p>{User.objects.count()} users</p><footer>Tiny {VERSION}</footer>")


urlpatterns = [path("", hello)]
