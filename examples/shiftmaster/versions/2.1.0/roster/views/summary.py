from django.contrib import messages
from django.shortcuts import get_object_or_404, redirect
from django.utils.translation import gettext as _
from django.views.decorators.http import require_POST

from roster import tasks
from roster.models import Ward

from .access import planner_required
from .jobs import enqueue


@planner_required
@require_POST
def summarize(request, ward, month):
    ward = get_object_or_404(Ward, slug=ward)
    if enqueue(request, tasks.summarize_month, ward.pk, str(month)):
        messages.success(request, _("The summary is being made."))
    return redirect("roster:month", ward.slug, month)
