from django.contrib.auth.decorators import login_required
from django.http import JsonResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.http import require_POST, require_safe

from roster.forms import AssignForm
from roster.grid import Grid
from roster.models import Assignment, MonthPlan, Ward

from .access import planner_required


def page(request, ward, month, form=None, status=200):
    context = {
        "ward": ward,
        "month": month,
        "grid": Grid(ward, month, request.user.is_staff),
        "plan": MonthPlan.objects.filter(ward=ward, month=month.first).first(),
        "form": form,
        "may_plan": request.user.is_staff,
    }
    return render(request, "roster/month.html", context, status=status)


@login_required
@require_safe
def month(request, ward, month):
    return page(request, get_object_or_404(Ward, slug=ward), month)


@planner_required
@require_POST
def assign(request, ward, month):
    """Save one cell: staff (id), day (2026-01-31), shift (its sign; empty clears the cell).

    Answers 302 to the month, or JSON to the grid's script; what is wrong is 400.
    """
    ward = get_object_or_404(Ward, slug=ward)
    form = AssignForm(request.POST, ward=ward, month=month)
    scripted = request.headers.get("X-Requested-With") == "fetch"
    if not form.is_valid():
        if scripted:
            return JsonResponse({"errors": form.errors}, status=400)
        return page(request, ward, month, form, status=400)
    staff, day, shift = (form.cleaned_data[name] for name in ("staff", "day", "shift"))
    if shift is None:
        Assignment.objects.filter(staff=staff, day=day).delete()
    else:
        # One statement, so two people who save the same cell at once both succeed and the later one stays.
        Assignment.objects.bulk_create(
            [Assignment(staff=staff, day=day, shift=shift, updated_by=request.user)],
            update_conflicts=True,
            unique_fields=["staff", "day"],
            update_fields=["shift", "updated_at", "updated_by"],
        )
    if scripted:
        return JsonResponse({"code": shift.code if shift else "", "tone": shift.tone if shift else ""})
    return redirect("roster:month", ward.slug, month)
