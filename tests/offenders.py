"""One test for many items: it checks all of them, and fails once with the complete list of those that are wrong."""

from __future__ import annotations

import inspect
import traceback


def check_each(items, check, name=str) -> None:
    """Call check(item) for each item, and fail with what each wrong one raised."""
    items, offenders = list(items), []
    assert items, "there is nothing to check"
    for item in items:
        try:
            check(item)
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            what = str(error) if isinstance(error, AssertionError) else f"{type(error).__name__}: {error}"
            offenders.append(f"{name(item)} (line {where.lineno} of {where.name}): {what}")
    assert not offenders, f"{len(offenders)} of {len(items)}:\n" + "\n".join(offenders)


def each(items, name=str):
    """For a test with an argument: make it one test of all items. Items that are expensive come from a function."""

    def decorate(check):
        parameters = [*inspect.signature(check).parameters.values()]

        def test(**fixtures):
            given = items() if callable(items) else items
            check_each(given, lambda item: check(**{parameters[0].name: item}, **fixtures), name)

        test.__name__, test.__doc__, test.__module__ = check.__name__, check.__doc__, check.__module__
        # The other arguments are fixtures, which all items share.
        test.__signature__ = inspect.Signature(
            [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in parameters[1:]]
        )
        return test

    return decorate
