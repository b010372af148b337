"""Removes what nobody needs any more; once a day, by Celery beat."""

from datetime import timedelta

from celery import shared_task
from django.core.management import call_command
from django.utils import timezone

from roster.models import MailDelivery, TaskRun


@shared_task(name="roster.tasks.tidy")
def tidy():
    call_command("clearsessions")
    limit = timezone.now() - timedelta(days=90)
    TaskRun.objects.filter(finished_at__lt=limit).delete()
    MailDelivery.objects.filter(sent_at__lt=limit).delete()
