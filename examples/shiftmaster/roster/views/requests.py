from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.shortcuts import get_object_or_404, redirect, render
from django.utils import timezone
from django.utils.translation import gettext as _
from django.views.decorators.http import require_http_methods, require_POST

from roster.forms import DayOffForm
from roster.models import DayOffRequest

from .access import planner_required


@login_required
@require_http_methods(["GET", "HEAD", "POST"])
def requests(request):
    """Coming requests, and the form for a new one. Who is no planner sees their own."""
    status = 200
    if request.method == "POST":
        form = DayOffForm(request.POST, user=request.user)
        if form.is_valid():
            form.save()
            messages.success(request, _("The request is on its way."))
            return redirect("roster:requests")
        status = 400
    else:
        form = DayOffForm(user=request.user)
    wishes = DayOffRequest.objects.select_related("staff__ward").filter(day__gte=timezone.localdate())
    if not request.user.is_staff:
        wishes = wishes.filter(staff__user=request.user)
    context = {"form": form, "wishes": wishes[:200], "may_plan": request.user.is_staff}
    return render(request, "roster/requests.html", context, status=status)


@planner_required
@require_POST
def decide(request, pk):
    wish = get_object_or_404(DayOffRequest, pk=pk)
    if request.POST.get("answer") in (DayOffRequest.State.APPROVED, DayOffRequest.State.DECLINED):
        wish.state = request.POST["answer"]
        wish.save(update_fields=["state"])
    return redirect("roster:requests")
