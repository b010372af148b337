"""What is done in the background: the page gives the order, Celery works."""

import logging
import uuid

from django.conf import settings
from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.http import JsonResponse
from django.shortcuts import get_object_or_404, redirect
from django.utils import timezone
from django.utils.translation import get_language
from django.utils.translation import gettext as _
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_POST, require_safe
from kombu.exceptions import OperationalError

from roster import tasks
from roster.models import MonthPlan, Ward

from .access import planner_required

logger = logging.getLogger(__name__)


def enqueue(request, task, *args):
    """Give a task to the queue; a queue that cannot be reached is said on the page, it is no crash."""
    try:
        task.delay(*args)
    except OperationalError as exc:
        logger.error("%s could not be enqueued: %s", task.name, type(exc).__name__)
        messages.error(request, _("The queue does not answer. Please try again in a minute."))
        return False
    return True


@planner_required
@require_POST
def draft(request, ward, month):
    ward = get_object_or_404(Ward, slug=ward)
    # Before the task, which may be faster than this view.
    MonthPlan.objects.update_or_create(ward=ward, month=month.first, defaults={"draft_asked_at": timezone.now()})
    if not enqueue(request, tasks.build_draft, ward.pk, str(month)):
        MonthPlan.objects.filter(ward=ward, month=month.first).update(draft_asked_at=None)
    return redirect("roster:month", ward.slug, month)


@login_required
@require_safe
@never_cache
def draft_state(request, ward, month):
    plan = get_object_or_404(MonthPlan, ward__slug=ward, month=month.first)
    return JsonResponse({"drafting": plan.drafting})


@planner_required
@require_POST
def mail(request, ward, month):
    ward = get_object_or_404(Ward, slug=ward)
    if not settings.EMAIL_HOST:
        messages.error(request, _("No mail server is set up, so nothing can be sent."))
    elif enqueue(request, tasks.mail_roster, ward.pk, str(month), str(uuid.uuid4()), get_language()):
        messages.success(request, _("The roster is being sent to everyone with an address."))
    return redirect("roster:month", ward.slug, month)
