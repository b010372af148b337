from datetime import date
from pathlib import Path

from django.contrib.auth.decorators import login_required
from django.shortcuts import redirect, render

from .models import Shift

VERSION = (Path(__file__).resolve().parent.parent / "VERSION").read_text().strip()


@login_required
def board(request):
    shifts = Shift.objects.order_by("-id")
    if "staff" in request.GET:
        shifts = shifts.filter(staff=request.GET["staff"])
    return render(request, "shifts/board.html", {"shifts": shifts[:20], "version": VERSION})


@login_required
def add(request):
    if request.method == "POST":
        Shift.objects.create(
            staff=request.POST["staff"], day=date.fromisoformat(request.POST["day"]), kind=request.POST["kind"]
        )
    return redirect("/")
