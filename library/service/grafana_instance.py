#!/usr/bin/python
# State that is available through Grafana's API only.
"""Keep a Grafana's users as in the list, and verify the provisioned objects."""

from __future__ import annotations

DOCUMENTATION = r"""
module: grafana_instance
short_description: Keep Grafana's users, and verify the provisioned objects
description:
  - The administrator logs in with O(admin_password), or with one of before, which is then replaced.
  - Users are created, get the role and the password of the list, and are removed when it does not name them. A password
    is compared by logging in with it, so it is set only when it differs.
  - Then Grafana has to report that its database is healthy, that every data source responds, that every dashboard is
    there as a provisioned one, and that none is left of those that were provisioned before. Grafana reads dashboards by
    itself some seconds after they were written; until then it is queried again.
  - A request without a login must be rejected.
options:
  url: {description: Grafana's address on this host., type: str, required: true}
  ca_file: {description: Authority of its certificate., type: path}
  admin_user: {description: The administrator's login., type: str, default: admin}
  admin_password: {description: The administrator's password., type: str, required: true}
  admin_previous_passwords: {type: list, elements: str, default: [], description: Passwords that the administrator had
    before.}
  users:
    description: The other users.
    type: list
    elements: dict
    default: []
    suboptions:
      login: {description: The login., type: str, required: true}
      password: {description: The password., type: str, required: true}
      role: {description: What the user may do., type: str, default: Viewer, choices: [Viewer, Editor, Admin]}
      name: {description: The name that is shown; the login where it is empty., type: str, default: ""}
      email: {description: The mail address., type: str, default: ""}
  prune_users: {description: Remove users that are not listed., type: bool, default: true}
  data_sources: {description: uids of data sources that must respond., type: list, elements: str, default: []}
  dashboards: {description: "Dashboards that must be there, title by uid.", type: dict, default: {}}
  folder_uid: {description: uid of the folder that holds these dashboards., type: str, default: ""}
  timeout_seconds: {description: How long to wait for the dashboards and the data sources., type: int, default: 60}
attributes:
  check_mode: {description: Nothing changes; a Grafana that does not respond is taken as still to come., support: full}
  diff_mode: {description: Users and roles; never a password., support: full}
"""

EXAMPLES = r"""
- name: Run | Configure the users and verify the rest
  grafana_instance:
    url: https://127.0.0.1:3000
    ca_file: /etc/ssl/shiftmaster/ca.crt
    admin_password: "{{ grafana_admin_password }}"
    users: "{{ grafana_users }}"
    data_sources: [prometheus]
    dashboards: {shiftmaster-overview: ShiftMaster - システム概要}
    folder_uid: shiftmaster
"""

RETURN = r"""
done: {returned: always, type: list, elements: str, description: "What was (in check mode would be) changed, a sentence
  each."}
version: {description: Grafana's version., returned: when it responds, type: str}
"""

import time

from ansible.module_utils.shiftmaster.host.json_api import Api, Failed, keep, message_of, quoted
from ansible.module_utils.shiftmaster.host.quiet import SECRET, TEXT, QuietModule, given, list_of


def plan(present, wanted, admin, prune):
    """What the users lack: [(action, login, metric)]. present: {login: {"id", "role", "name", "email"}}."""
    steps = []
    for user in wanted:
        now = present.get(user["login"])
        if now is None:
            steps.append(("create", user["login"], user["role"]))
            continue
        if now["role"] != user["role"]:
            steps.append(("role", user["login"], "%s -> %s" % (now["role"], user["role"])))
        if (now["name"], now["email"]) != described(user):
            steps.append(("describe", user["login"], ""))
    if prune:
        listed = {user["login"] for user in wanted} | {admin}
        steps += [("remove", login, "") for login in sorted(present) if login not in listed]
    return steps


def described(user):
    """Name and mail address as Grafana keeps them; it takes the login where there is no address."""
    return user["name"] or user["login"], user["email"] or user["login"]


SENTENCES = {
    "create": "user %s is created as %s",
    "role": "user %s: role %s",
    "describe": "user %s: name or address%s",
    "remove": "user %s is removed%s",
    "password": "user %s: another password%s",
}


def sentence(step):
    return SENTENCES[step[0]] % step[1:]


class Instance:
    def __init__(self, module):
        self.module, self.p = module, module.params
        self.api = Api(self.p["url"], self.p["ca_file"], timeout=15)
        self.admin = (self.p["admin_user"], self.p["admin_password"])
        self.done = []

    def call(self, path, method="GET", body=None, fine=(200,)):
        return self.api.call(path, method, body, fine, login=self.admin)

    # -- users ------------------------------------------------------------------------------------------------
    def log_in(self):
        """Find the password that the administrator has, and make it the one that is wanted."""
        user, wanted = self.admin
        status, response = self.api.send("/api/user", login=self.admin)
        if status == 200:
            return
        for old in self.p["admin_previous_passwords"]:
            if status != 401:
                break
            status, response = self.api.send("/api/user", login=(user, old))
            if status == 200:
                self.done.append("user %s: another password" % user)
                if self.module.check_mode:
                    self.admin = (user, old)
                    return
                body = {"oldPassword": old, "newPassword": wanted, "confirmNew": wanted}
                status, response = self.api.send("/api/user/password", "PUT", body, login=(user, old))
                if status != 200:
                    raise Failed("Grafana rejects the administrator's new password: %s" % message_of(response))
                return
        raise Failed(
            "%s cannot log in (%s: %s). Grafana takes the configured password only when it makes its database."
            " Give the password that it has in grafana_admin_previous_passwords, or, where nobody knows it, run on the"
            " host: sudo -u grafana grafana cli --homepath /usr/share/grafana --config /etc/grafana/grafana.ini"
            " admin reset-admin-password --password-from-stdin" % (user, status, message_of(response))
        )

    def present(self):
        return {
            item["login"]: {
                "id": item["userId"],
                "role": item["role"],
                "name": item.get("name") or "",
                "email": item.get("email") or "",
            }
            for item in self.call("/api/org/users")
        }

    def keep_users(self):
        present = self.present()
        steps = plan(present, self.p["users"], self.p["admin_user"], self.p["prune_users"])
        created = {login for action, login, _metric in steps if action == "create"}
        users = {user["login"]: user for user in self.p["users"]}
        for login, user in users.items():
            if login not in created and self.api.send("/api/user", login=(login, user["password"]))[0] != 200:
                steps.append(("password", login, ""))
        self.done += [sentence(step) for step in steps]
        if self.module.check_mode:
            return
        for action, login, _metric in steps:
            self.take(action, users.get(login), present.get(login, {}).get("id"))

    def take(self, action, user, number):
        if action == "remove":
            self.call("/api/admin/users/%d" % number, "DELETE")
        elif action == "password":
            self.call("/api/admin/users/%d/password" % number, "PUT", {"password": user["password"]})
        elif action == "role":
            self.call("/api/org/users/%d" % number, "PATCH", {"role": user["role"]})
        elif action == "describe":
            name, email = described(user)
            self.call("/api/users/%d" % number, "PUT", {"login": user["login"], "name": name, "email": email})
        else:
            name, email = described(user)
            body = {"login": user["login"], "name": name, "email": email, "password": user["password"]}
            number = self.call("/api/admin/users", "POST", body)["id"]
            # A new user has the organization's own role, Viewer.
            if user["role"] != "Viewer":
                self.call("/api/org/users/%d" % number, "PATCH", {"role": user["role"]})

    # -- verification ------------------------------------------------------------------------------------------------
    def lacking(self):
        """What Grafana does not serve yet of what was provisioned."""
        found = []
        for uid in self.p["data_sources"]:
            status, response = self.api.send("/api/datasources/uid/%s/health" % quoted(uid), login=self.admin)
            if status != 200 or not isinstance(response, dict) or response.get("status") != "OK":
                found.append("data source %s is unhealthy (%s: %s)" % (uid, status, message_of(response)))
        for uid, title in sorted(self.p["dashboards"].items()):
            status, response = self.api.send("/api/dashboards/uid/%s" % quoted(uid), login=self.admin)
            if status != 200:
                found.append("dashboard %s is not there (%s)" % (uid, status))
            elif not response["meta"].get("provisioned"):
                found.append("dashboard %s is not the provisioned one" % uid)
            elif response["dashboard"].get("title") != title:
                found.append("dashboard %s has another title" % uid)
        if self.p["folder_uid"]:
            listed = self.call("/api/search?type=dash-db&limit=5000&folderUIDs=%s" % quoted(self.p["folder_uid"]))
            # What people made there by hand stays theirs.
            for uid in sorted({item["uid"] for item in listed} - set(self.p["dashboards"])):
                status, response = self.api.send("/api/dashboards/uid/%s" % quoted(uid), login=self.admin)
                if status == 200 and response["meta"].get("provisioned"):
                    found.append("dashboard %s is still there" % uid)
        return found

    def prove(self):
        for path in ("/api/org", "/api/search", "/metrics"):
            status, _response = self.api.send(path)
            if status not in (401, 403, 404):
                raise Failed("%s returns %s without a login" % (path, status))
        deadline = time.monotonic() + self.p["timeout_seconds"]
        while True:
            missing = self.lacking()
            if not missing:
                return
            if time.monotonic() >= deadline:
                raise Failed("%s (waited %d s)" % ("; ".join(missing), self.p["timeout_seconds"]))
            time.sleep(1)

    def run(self):
        status, health = self.api.send("/api/health")
        if status != 200 or not isinstance(health, dict) or health.get("database") != "ok":
            raise Failed("/api/health returns %s: %s" % (status, message_of(health)))
        self.log_in()
        self.keep_users()
        if not self.module.check_mode:
            self.prove()
        return {"version": health.get("version", "")}


def argument_spec():
    role = given("Viewer", choices=["Viewer", "Editor", "Admin"])
    return {
        "url": TEXT,
        "ca_file": {"type": "path"},
        "admin_user": given("admin"),
        "admin_password": SECRET,
        "admin_previous_passwords": given([], elements="str", no_log=True),
        "users": list_of(login=TEXT, password=SECRET, role=role, name=given(""), email=given("")),
        "prune_users": given(True),
        "data_sources": given([], elements="str"),
        "dashboards": given({}),
        "folder_uid": given(""),
        "timeout_seconds": given(60),
    }


def main():
    module = QuietModule(argument_spec=argument_spec(), supports_check_mode=True)
    keep(module, "Grafana", Instance(module))


if __name__ == "__main__":
    main()
