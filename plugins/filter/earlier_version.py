"""Filter `earlier_version`."""

from __future__ import annotations


def earlier_version(releases, revision, version, file):
    """Return why the inventory's version may not be deployed here: a sentence in a list, or an empty list.

    It was live before the release that is live, as after a deploy by -e or a rollback. releases: those of a host, as
    the release module describes them. version, revision: what the run asks for, and its commit. file: where the
    inventory's version is written.
    """
    live = next((one for one in releases if one["current"]), {})
    before = [one for one in releases if one["was_live"] and one["revision"] == revision]
    if not before or live.get("revision", "") in ("", revision):
        return []
    # A branch has the same name for both.
    stay = live["revision"][:10] if live["version"] == version else live["version"]
    return [
        "version %s, which a run deploys that names none, was live before %s. To stay with %s: shiftmaster_version:"
        ' "%s" in %s. To change: ansible-playbook deploy.yml -e shiftmaster_version=%s'
        % (version, stay, stay, stay, file, version)
    ]


class FilterModule:
    def filters(self):
        return {"earlier_version": earlier_version}
