"""Who has logged in and out, who has failed to, and whose rights were changed: a log of its own, kept for years.

People are called by their pseudonym. It needs a key that stays: `python -m shiftmaster_monitoring.pseudonym 42` prints,
on the host and with the application's environment, what the log calls the user with that number.
"""

from __future__ import annotations

import logging

from . import conf, logs, slow, trouble

logger = logging.getLogger("shiftmaster_monitoring.audit")
_FLAGS = ("is_active", "is_staff", "is_superuser")


def connect() -> None:
    from django.contrib.auth import get_user_model, signals
    from django.contrib.auth.models import Group
    from django.db.models.signals import m2m_changed, post_delete, post_save, pre_save

    prepare()
    for signal, receiver in (
        (signals.user_logged_in, logged_in),
        (signals.user_logged_out, logged_out),
        (signals.user_login_failed, login_failed),
    ):
        signal.connect(receiver, weak=False, dispatch_uid="shiftmaster_monitoring.audit")
    user = get_user_model()
    pre_save.connect(_before, sender=user, weak=False, dispatch_uid="shiftmaster_monitoring.audit")
    post_save.connect(_saved, sender=user, weak=False, dispatch_uid="shiftmaster_monitoring.audit")
    post_delete.connect(_deleted, sender=user, weak=False, dispatch_uid="shiftmaster_monitoring.audit")
    post_delete.connect(_group_deleted, sender=Group, weak=False, dispatch_uid="shiftmaster_monitoring.audit")
    for model, name in ((user, "groups"), (user, "user_permissions"), (Group, "permissions")):
        field = getattr(model, name, None)
        if field is not None:
            m2m_changed.connect(
                _rights, sender=field.through, weak=False, dispatch_uid="shiftmaster_monitoring.audit." + name
            )


def prepare() -> None:
    """Give the logger its file, unless the site's LOGGING has given it handlers of its own."""
    logger.disabled = False
    logger.setLevel(logging.INFO)
    path = conf.get("SHIFTMASTER_AUDIT_LOG")
    if path and not logger.handlers:
        found = logs.Appender(path)
        found.setFormatter(_Formatter(logs.Masks(conf.get("SHIFTMASTER_LOG_MASKS") or ()), "shiftmaster.audit"))
        logger.addHandler(found)
        logger.propagate = False


class _Formatter(logs.EcsFormatter):
    """JSON whatever the log of the application is: its readers are programs, years later."""

    def event(self, record) -> dict:
        found = super().event(record)
        recorded = getattr(record, "_audit", {})
        # The route shows where; a path may hold a name, for seven years.
        found.pop("url", None)
        found["event"] = {**found["event"], **recorded.get("event", {})}
        for name in ("user", "source"):
            if recorded.get(name):
                found[name] = {**found.get(name, {}), **recorded[name]}
        return found


def write(action: str, category: str, outcome: str = "success", user=None, target=None, request=None, what="") -> None:
    """Write one event. Raises nothing."""
    with trouble.contained("an audit event cannot be written"):
        people = {}
        if user is not None:
            people["hash"] = logs.pseudonym(user)
        if target is not None:
            people["target"] = {"hash": logs.pseudonym(target)}
        event = {
            "kind": "event",
            "category": [category],
            "action": action,
            "outcome": outcome,
            "type": ["change"] if category == "iam" else ["end" if action == "logout" else "start"],
        }
        source = {"ip": slow.remote_address(request)[:64]} if request is not None else {}
        recorded = {"event": event, "user": people, "source": {name: value for name, value in source.items() if value}}
        logger.info("%s %s%s", action, outcome, ": " + what if what else "", extra={"_audit": recorded})


def logged_in(sender=None, request=None, user=None, **_more) -> None:
    write("login", "authentication", user=getattr(user, "pk", None), request=request)


def logged_out(sender=None, request=None, user=None, **_more) -> None:
    write("logout", "authentication", user=getattr(user, "pk", None), request=request)


def login_failed(sender=None, credentials=None, request=None, **_more) -> None:
    """The name that was typed may be a password by mistake: it is written as a pseudonym too."""
    given = credentials or {}
    name = next((given[key] for key in ("username", "email", "identifier") if given.get(key)), None)
    write("login", "authentication", "failure", "name:%s" % name if name else None, request=request)


def _who():
    """Return the number of who is logged in where something is changed, or None."""
    from . import carry

    origin = carry.current()
    content = getattr(getattr(origin and origin.request, "session", None), "_session_cache", None)
    return content.get("_auth_user_id") if isinstance(content, dict) else None


def _before(sender=None, instance=None, raw=False, **_more) -> None:
    with trouble.contained("whose rights are changed cannot be seen"):
        instance._shiftmaster_flags = None
        if instance.pk and not raw:
            instance._shiftmaster_flags = sender._default_manager.filter(pk=instance.pk).values(*_flags(sender)).first()


def _flags(model) -> list:
    names = {field.name for field in model._meta.concrete_fields}
    return [name for name in (*_FLAGS, "password") if name in names]


def _saved(sender=None, instance=None, created=False, **_more) -> None:
    with trouble.contained("a changed user cannot be written down"):
        if created:
            rights = [name for name in ("is_staff", "is_superuser") if getattr(instance, name, False)]
            write("user-created", "iam", user=_who(), target=instance.pk, what=", ".join(rights))
            return
        before = getattr(instance, "_shiftmaster_flags", None) or {}
        for name, value in before.items():
            now = getattr(instance, name)
            if now != value:
                what = "changed" if name == "password" else "%s -> %s" % (value, now)
                write("user-changed", "iam", user=_who(), target=instance.pk, what="%s %s" % (name, what))


def _deleted(sender=None, instance=None, **_more) -> None:
    write("user-deleted", "iam", user=_who(), target=instance.pk)


def _group_deleted(sender=None, instance=None, **_more) -> None:
    """Its members lose what it gave them, without a signal of Django."""
    write("rights-changed", "iam", user=_who(), what="group %s deleted" % instance)


def _rights(sender=None, instance=None, action="", reverse=False, model=None, pk_set=None, **_more) -> None:
    with trouble.contained("changed rights cannot be written down"):
        if action not in ("post_add", "post_remove", "post_clear"):
            return
        verb = {"post_add": "added", "post_remove": "removed", "post_clear": "all removed"}[action]
        if reverse:  # A group is given members, or a permission groups: from the other side.
            if hasattr(model, "permissions"):
                for group in model._default_manager.filter(pk__in=pk_set or ()).order_by("pk"):
                    write("rights-changed", "iam", user=_who(), what="group %s: %s %s" % (group, verb, instance))
            else:
                for key in sorted(pk_set or ()):
                    write("rights-changed", "iam", user=_who(), target=key, what="%s %s" % (verb, instance))
            if pk_set is None:  # Django does not name the users who lost it.
                write("rights-changed", "iam", user=_who(), what="%s: %s" % (instance, verb))
            return
        names = sorted(str(found) for found in model._default_manager.filter(pk__in=pk_set or ()))
        is_user = not hasattr(instance, "permissions")
        what = "%s %s" % (verb, ", ".join(names)) if names else verb
        if not is_user:
            what = "group %s: %s" % (instance, what)
        write("rights-changed", "iam", user=_who(), target=instance.pk if is_user else None, what=what)
