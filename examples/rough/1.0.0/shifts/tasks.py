import logging

from shifts.celery import app


@app.task
def send_notice(text):
    logging.getLogger(__name__).info("notice: %s", text)
