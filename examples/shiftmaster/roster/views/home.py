from django.contrib.auth.decorators import login_required
from django.db.models import Count, Q
from django.shortcuts import get_object_or_404, redirect, render

from roster.models import Assignment, DayOffRequest, Ward
from roster.months import Month


@login_required
def home(request):
    """The wards, and how far each one's month is planned."""
    month = Month.current()
    # An annotated query does not follow the model's ordering.
    wards = Ward.objects.annotate(people=Count("staff", filter=Q(staff__active=True))).order_by(*Ward._meta.ordering)
    filled = dict(
        Assignment.objects.filter(day__range=month.range, staff__active=True)
        .values_list("staff__ward")
        .annotate(Count("pk"))
        .order_by()
    )
    waiting = dict(
        DayOffRequest.objects.filter(state=DayOffRequest.State.OPEN)
        .values_list("staff__ward")
        .annotate(Count("pk"))
        .order_by()
    )
    for ward in wards:
        cells = ward.people * len(month.days)
        ward.percent = round(100 * filled.get(ward.pk, 0) / cells) if cells else 0
        ward.waiting = waiting.get(ward.pk, 0)
    return render(request, "roster/home.html", {"wards": wards, "month": month})


@login_required
def this_month(request, ward):
    ward = get_object_or_404(Ward, slug=ward)
    return redirect("roster:month", ward.slug, Month.current())
