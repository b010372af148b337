from datetime import date
from pathlib import Path

from django.conf import settings
from django.contrib.auth.decorators import login_required
from django.http import FileResponse
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


@login_required
def export(request):
    # Below its own source, which nothing tells of before somebody exports.
    directory = settings.BASE_DIR / "shifts" / "temp_exports"
    directory.mkdir(exist_ok=True)
    path = directory / "shifts.csv"
    path.write_text("".join(f"{shift.staff},{shift.day},{shift.kind}\n" for shift in Shift.objects.all()))
    return FileResponse(path.open("rb"), as_attachment=True)


@login_required
def statistics(request):
    # The template was never written: this page fails in every version.
    return render(request, "shifts/statistics.html")
