"""Sends the messages of notify.text: by an incoming webhook, by mail, to PagerDuty; all at once, in a bounded time.

A channel that is down, or set up wrongly, never fails the run that sends the notification.
"""

from __future__ import annotations

import email.message
import email.policy
import email.utils
import json
import re
import smtplib
import socket
import ssl
import threading
import time
import urllib.error
import urllib.request

from . import text as notify_text

# Waits for a server that returns 429 or 5xx, as long as there is time.
PAUSE_SECONDS = 1.0


class NotSent(Exception):
    """The channel did not take it; str() shows why."""


def wrong_channels(params):
    """Channels that are set up in a way in which nothing can be sent: {channel: why}. The others are used."""
    slack, mail, pagerduty = params["slack"], params["email"], params["pagerduty"]
    found = {}

    def check(channel, fine, text):
        if not fine:
            found.setdefault(channel, text)

    def is_url(text):
        return re.match(r"https?://[^\s/]+(/\S*)?$", text) is not None

    if slack:
        check("slack", is_url(slack["url"]), "slack.url is no URL")
    if pagerduty:
        check("pagerduty", is_url(pagerduty["url"]), "pagerduty.url is no URL")
        check("pagerduty", is_url(pagerduty["change_url"]), "pagerduty.change_url is no URL")
        key = re.match(r"[A-Za-z0-9]{32}$", pagerduty["routing_key"])
        check("pagerduty", key, "pagerduty.routing_key is not 32 letters and digits")
    if params["proxy"] and not is_url(params["proxy"]):
        for channel in ("slack", "pagerduty"):
            check(channel, not params[channel], "proxy is no URL")
    if mail:
        check("email", mail["recipients"], "email.recipients is empty")
        for address in [mail["sender"]] + mail["recipients"]:
            check("email", re.match(r"[^@\s<>]+@[^@\s<>]+$", address), "%s is no address" % address)
        here = mail["host"] in ("localhost", "127.0.0.1", "::1")
        check(
            "email",
            not mail["user"] or mail["security"] != "none" or here,
            "email.security is none: no password is sent to another host without encryption",
        )
    return found


def without_secrets(text, secrets):
    for secret in secrets:
        if secret:
            text = text.replace(secret, "********")
    return text


class Web:
    """POST of JSON, with the authority, the proxy and the time that are given."""

    def __init__(self, ca_file, proxy, deadline):
        self.deadline = deadline
        handlers = [urllib.request.HTTPSHandler(context=ssl.create_default_context(cafile=ca_file))]
        if proxy:
            handlers.append(urllib.request.ProxyHandler({"http": proxy, "https": proxy}))
        self.opener = urllib.request.build_opener(*handlers)

    def post(self, url, body):
        data = json.dumps(body, ensure_ascii=False).encode()
        while True:
            left = self.deadline - time.monotonic()
            if left <= 0:
                raise NotSent("no response in time")
            request = urllib.request.Request(
                url, data=data, headers={"Content-Type": "application/json", "User-Agent": "shiftmaster-ops"}
            )
            try:
                with self.opener.open(request, timeout=left) as response:
                    return response.read(2000).decode("utf-8", "replace")
            except urllib.error.HTTPError as error:
                output = error.read(300).decode("utf-8", "replace").strip()
                problem = NotSent("returns %d %s" % (error.code, output))
                # Both services accept a later retry for these, and only for these.
                if error.code != 429 and error.code < 500:
                    raise problem
            except (OSError, ValueError) as error:
                problem = NotSent(str(getattr(error, "reason", error)))
            if self.deadline - time.monotonic() <= PAUSE_SECONDS:
                raise problem
            time.sleep(PAUSE_SECONDS)


def send_mail(mail, attachments, subject, text, page, ca_file, deadline):
    message = email.message.EmailMessage(policy=email.policy.SMTP.clone(cte_type="7bit"))
    message["Subject"] = subject
    message["From"] = mail["sender"]
    message["To"] = ", ".join(mail["recipients"])
    message["Date"] = email.utils.localtime()
    # With the sender's domain: the controller's own name would be looked up, which may take long.
    message["Message-ID"] = email.utils.make_msgid(domain=mail["sender"].rpartition("@")[2])
    # Suppresses automatic replies (RFC 3834).
    message["Auto-Submitted"] = "auto-generated"
    message.set_content(text)
    message.add_alternative(page, subtype="html")
    for one in attachments:
        subtype = "html" if one["name"].endswith(".html") else "plain"
        message.add_attachment(one["content"], subtype=subtype, filename=one["name"])
    left = max(0.1, deadline - time.monotonic())
    context = ssl.create_default_context(cafile=ca_file)
    arguments = {"timeout": left, "local_hostname": socket.gethostname() or "localhost"}
    try:
        if mail["security"] == "tls":
            server = smtplib.SMTP_SSL(mail["host"], mail["port"], context=context, **arguments)
        else:
            server = smtplib.SMTP(mail["host"], mail["port"], **arguments)
        with server:
            if mail["security"] == "starttls":
                server.starttls(context=context)
            if mail["user"]:
                server.login(mail["user"], mail["password"])
            refused = server.send_message(message)
    except (OSError, smtplib.SMTPException) as error:
        raise NotSent(str(error))
    if refused:
        raise NotSent("refused for %s" % ", ".join(sorted(refused)))


def compose(params, now):
    """What is sent, by channel."""
    links = [one for one in params["links"] if re.match(r"https?://\S+$", one["href"])]
    about = [params[name] for name in ("event", "status", "environment", "details", "language")]
    found = {}
    if params["slack"]:
        found["slack"] = notify_text.slack(*about, links, params["slack"]["channel"])
    if params["email"]:
        found["email"] = notify_text.email(*about, links)
    if params["pagerduty"]:
        found["pagerduty"] = notify_text.pagerduty(*about, links, now)
    return {channel: message for channel, message in found.items() if message}


def deliver(params, messages):
    """Send all at once. Return ([channels that took it], {channel: why not})."""
    deadline = time.monotonic() + params["timeout_seconds"]
    secrets = [params["slack"] and params["slack"]["url"], params["email"] and params["email"]["password"]]
    secrets.append(params["pagerduty"] and params["pagerduty"]["routing_key"])
    results = {}

    def send(channel):
        try:
            if channel == "email":
                send_mail(
                    params["email"], params.get("attachments") or [], *messages["email"], params["ca_file"], deadline
                )
            elif channel == "slack":
                Web(params["ca_file"], params["proxy"], deadline).post(params["slack"]["url"], messages["slack"])
            else:
                own, web = params["pagerduty"], Web(params["ca_file"], params["proxy"], deadline)
                for kind, event in messages["pagerduty"]:
                    url = own["change_url"] if kind == "change" else own["url"]
                    web.post(url, dict(event, routing_key=own["routing_key"]))
            results[channel] = ""
        except NotSent as error:
            results[channel] = without_secrets(str(error), secrets)
        # Whatever a channel does, the run that sends the notification continues.
        except Exception as error:
            results[channel] = without_secrets("%s: %s" % (type(error).__name__, error), secrets)

    # Daemons: one that hangs (a name server that is silent) does not keep the module.
    threads = [threading.Thread(target=send, args=(channel,), daemon=True) for channel in messages]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, deadline + 0.5 - time.monotonic()))
    done = dict(results)
    sent = sorted(channel for channel, problem in done.items() if not problem)
    problems = {channel: done.get(channel, "no response in time") for channel in messages if channel not in sent}
    return sent, problems
