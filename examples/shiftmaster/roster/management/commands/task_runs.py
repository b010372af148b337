"""For tests of deploys: send counted tasks, and count what has run. Prints JSON."""

import json

from django.core.management.base import BaseCommand
from django.db.models import Count, Q

from roster.models import TaskRun
from shiftmaster.celery import app


class Command(BaseCommand):
    help = "Send tasks that are counted, or report how often each has run to its end."

    def add_arguments(self, parser):
        actions = parser.add_subparsers(dest="action", required=True)
        send = actions.add_parser("send", help="enqueue tasks with the keys PREFIX-0, PREFIX-1, …")
        send.add_argument("prefix")
        send.add_argument("--count", type=int, default=1)
        send.add_argument("--seconds", type=float, default=0.0, help="how long each one sleeps")
        # By name, so that a version can be given a task that it does not know.
        send.add_argument("--task", default="roster.tasks.record_run")
        report = actions.add_parser("report", help="executions of each key that starts with PREFIX-")
        report.add_argument("prefix")

    def handle(self, *args, action, prefix, **options):
        if action == "send":
            keys = [f"{prefix}-{n}" for n in range(options["count"])]
            for key in keys:
                app.send_task(options["task"], kwargs={"key": key, "seconds": options["seconds"]})
            self.stdout.write(json.dumps({"task": options["task"], "sent": keys}))
            return
        rows = (
            TaskRun.objects.filter(key__startswith=f"{prefix}-")
            .values("key")
            .annotate(runs=Count("pk"), effects=Count("pk", filter=Q(effective=True)))
            .order_by()
        )
        answer = {
            "runs": {row["key"]: row["runs"] for row in rows},
            "total": sum(row["runs"] for row in rows),
            "twice": sorted(row["key"] for row in rows if row["runs"] > 1),
        }
        self.stdout.write(json.dumps(answer))
