"""A small Celery application that uses of Redis what ShiftMaster's worker uses."""

import os
import time

from celery import Celery, chain, group

BROKER = os.environ["BROKER_URL"]
app = Celery("probe", broker=BROKER, backend=os.environ.get("RESULT_URL", BROKER))
app.conf.update(
    broker_connection_retry_on_startup=True,
    broker_transport_options={
        "visibility_timeout": 3,
        "priority_steps": [0, 3, 6, 9],
        "queue_order_strategy": "priority",
    },
    task_acks_late=True,
    worker_prefetch_multiplier=1,
    task_default_queue="shiftmaster",
)


@app.task
def add(left, right):
    return left + right


@app.task(bind=True, max_retries=2)
def flaky(self):
    if self.request.retries < 1:
        raise self.retry(countdown=1)
    return "at last"


@app.task
def slow(seconds):
    time.sleep(seconds)
    return "slept"


@app.task
def total(numbers):
    return sum(numbers)


def round_trip():
    """Everything that passes the broker: tasks, priorities, a countdown, a retry, a workflow, control and events."""
    assert add.delay(2, 3).get(timeout=20) == 5
    assert add.apply_async((1, 1), priority=6).get(timeout=20) == 2
    assert add.apply_async((2, 2), countdown=1).get(timeout=20) == 4
    assert flaky.delay().get(timeout=20) == "at last"
    assert group(add.s(number, number) for number in range(5))().get(timeout=20) == [0, 2, 4, 6, 8]
    assert chain(add.s(1, 1), add.s(3))().get(timeout=20) == 5
    assert (group(add.s(1, 1), add.s(2, 2)) | total.s())().get(timeout=20) == 6
    # Longer than the visibility timeout: the worker restores unacknowledged messages under its lock.
    assert slow.delay(5).get(timeout=30) == "slept"
    inspect = app.control.inspect(timeout=5)
    assert inspect.ping() and inspect.active_queues() and inspect.registered()
    revoked = add.apply_async((1, 1), countdown=60)
    revoked.revoke()
    assert app.control.broadcast("enable_events", reply=True, timeout=5)
    app.control.purge()
    with app.connection_or_acquire() as connection:
        assert connection.default_channel.client.info()["redis_version"]
    print("round trip done")
