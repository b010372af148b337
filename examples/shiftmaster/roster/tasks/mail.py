"""Mails a ward's month to its staff."""

import logging

from celery import shared_task
from django.core.mail import send_mail
from django.db import IntegrityError, transaction
from django.template.loader import render_to_string
from django.utils import translation

from roster.models import Assignment, MailDelivery, StaffMember, Ward
from roster.months import Month

from .retry import ON_LOST_DATABASE

# A mail server that does not answer, or says no for now, is an OSError; so is smtplib's own error.
ON_LOST_SERVICE = {**ON_LOST_DATABASE, "autoretry_for": (*ON_LOST_DATABASE["autoretry_for"], OSError)}

logger = logging.getLogger(__name__)


@shared_task(name="roster.tasks.mail_roster", **ON_LOST_SERVICE)
def mail_roster(ward_id, month, order, language="ja"):
    """Send each person their own shifts, once for each order, however often the task runs.

    The letter's row and the letter go together: a mail server that refuses takes the row back. Only a worker that dies
    between the server's answer and the commit can send one letter twice; no mail protocol closes that gap.
    """
    month = Month.parse(month)
    ward = Ward.objects.get(pk=ward_id)
    sent = 0
    staff = StaffMember.objects.filter(ward=ward, active=True).exclude(email="")
    with translation.override(language):
        for person in staff:
            shifts = Assignment.objects.filter(staff=person, day__range=month.range).select_related("shift")
            context = {"person": person, "ward": ward, "month": month, "shifts": shifts.order_by("day")}
            try:
                with transaction.atomic():
                    MailDelivery.objects.create(order=order, staff=person)
                    send_mail(
                        translation.gettext("Your shifts in %(month)s") % {"month": month},
                        render_to_string("roster/mail.txt", context),
                        None,
                        [person.email],
                    )
            except IntegrityError:
                continue  # sent by an earlier run
            sent += 1
    logger.info("roster of ward %s for %s: %d letters sent", ward_id, month, sent)
    return sent
