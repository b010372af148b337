"""The symptoms that users notice: which requests failed, whether they still fail, and whether they failed before."""

from __future__ import annotations

import json

import pytest
from ansible.module_utils.shiftmaster.host import symptoms
from ansible.module_utils.shiftmaster.host.symptoms import Request


def request(at, status=200, page="/", own=None):
    return Request(float(at), status, 0.1, page, status == 500 if own is None else own)


@pytest.mark.parametrize(
    ("status", "upstream", "own"),
    [(500, "500", True), (502, "502", False), (503, "", False), (504, "504", False), (500, "502, 500", True),
     (502, "500, 502", False), (200, "200", False), (503, "503", True)],
)  # fmt: skip
def test_the_application_is_distinguished_from_the_web_server(status, upstream, own):
    line = json.dumps({"msec": 5.0, "status": status, "path": "/x/", "request_time": 1, "upstream_status": upstream})
    assert symptoms.parse(line).by_application == own


@pytest.mark.parametrize(
    ("status", "seconds", "failed"), [(499, 9.0, True), (499, 0.3, False), (404, 9.0, False), (502, 0.1, True)]
)
def test_a_user_who_has_left_after_long_has_got_no_page(status, seconds, failed):
    assert Request(1.0, status, seconds).failed == failed


def test_pages_are_distinguished_without_numbers_and_queries():
    lines = [json.dumps({"msec": 5.0, "status": 200, "uri": uri}) for uri in ("/shift/17/?day=3", "/shift/18/", "/")]
    assert symptoms.counts(map(symptoms.parse, lines)) == {"/shift/#/": (2, 0), "/": (1, 0)}


@pytest.mark.parametrize(
    ("failed", "more"),
    [
        ("......", False),
        ("..xx..xx..", True),  # Every second one fails.
        ("....xxxx", True),
        ("....xxxx..", True),  # Too few since for a result.
        ("....xxxx...", False),  # An outage that is over.
        ("x.........x.........", True),  # One in ten.
        ("xxxx" + "." * 90, False),
        # Errors come back each time that something restarts the application.
        (("xxx" + 40 * ".") * 2 + "xxx" + 30 * ".", True),
        (("xxx" + 40 * ".") * 2 + "xxx" + 70 * ".", False),
        # One short outage, with some luck in it.
        ("xx.x...xx.xxx" + 70 * ".", False),
    ],
)
def test_errors_continue_until_enough_requests_have_succeeded(failed, more):
    assert symptoms.goes_on([one == "x" for one in failed]) == more


def test_a_short_outage_of_all_pages_is_over_by_all_of_them():
    """Each page was requested once since."""
    pages = ["/a/", "/b/", "/c/", "/d/"]
    outage = [request(10 + number, 500, page) for number, page in enumerate(pages)]
    assert len(symptoms.failing(outage)) == 4
    assert symptoms.failing(outage + [request(20 + number, 200, page) for number, page in enumerate(pages)]) == []


@pytest.mark.parametrize("restart", [0, 4])
def test_a_page_that_always_fails_and_is_seldom_requested_still_fails(restart):
    """Thirty requests of other pages since are no sign that it succeeds; nor is what nginx logs of a restart."""
    requests = [request(at, 500 if at % 4 == 0 else 200, "/bad/" if at % 4 == 0 else "/") for at in range(40)]
    requests += [request(3, 502, "/", own=False) for _one in range(restart)]
    requests += [request(40 + at, 200, "/") for at in range(30)]
    assert [(one["page"], one["errors"]) for one in symptoms.failing(requests)] == [("/bad/", 10)]


def test_a_page_that_fails_sometimes_is_found_with_its_numbers():
    requests = [request(at, 500 if at % 10 == 0 else 200, "/bad/" if at % 10 == 0 else "/") for at in range(100)]
    (page,) = symptoms.failing(requests)
    assert (page["page"], page["errors"], page["requests"], page["own_errors"], page["last"], page["often"]) == (
        "/bad/", 10, 10, 10, 90.0, True,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("before", "new"),
    [
        (None, False),  # Nothing is known of the release before.
        ({"/": (9, 0)}, False),  # Too little.
        ({"/": (10, 0)}, True),
        ({"/": (100, 0)}, True),  # The page is new.
        ({"/bad/": (100, 1)}, True),  # An earlier outage.
        ({"/bad/": (10, 6), "/": (10, 0)}, False),
    ],
)
def test_only_failures_that_the_release_before_did_not_show_are_new(before, new):
    assert symptoms.failing([request(at, 500, "/bad/") for at in range(9)], before)[0]["new"] == new


# --- lines of the log -----------------------------------------------------------------------------------------------


def parsed(**fields):
    return symptoms.parse(json.dumps({"status": 200, **fields}))


@pytest.mark.parametrize(
    ("fields", "at"),
    [
        ({"time": "1970-01-01T00:00:05Z"}, 5),
        ({"time": 5, "msec": 6.25}, 6.25),
        ({"@timestamp": "1970-01-01T00:00:05.5+00:00"}, 5.5),
        ({"time_iso8601": "1970-01-01T09:00:05+09:00"}, 5),
        ({"msec": "5.25"}, 5.25),
        ({"time_local": "5"}, 5),
        ({"time": "yesterday", "@timestamp": "", "msec": 5}, 5),
    ],
)
def test_the_time_of_a_request_is_the_first_that_can_be_read(fields, at):
    assert parsed(**fields).at == at


@pytest.mark.parametrize(
    "line",
    ["{}", "7", "[]", "[" * 100000, '{"msec": 5}', '{"msec": 5, "status": "-"}', '{"msec": Infinity, "status": 200}',
     '{"msec": NaN, "status": 200}', '{"status": 200}', '{"msec": 5, "status": 200, "request_time": "x"}'],
)  # fmt: skip
def test_invalid_requests_are_skipped(line):
    assert symptoms.parse(line) is None


@pytest.mark.parametrize(("value", "seconds"), [(None, 0), ("", 0), ("-", 0), ("0.25", 0.25), (2, 2)])
def test_a_request_without_a_duration_took_no_time(value, seconds):
    assert parsed(msec=5, request_time=value).seconds == seconds


@pytest.mark.parametrize(
    ("fields", "page"),
    [({}, ""), ({"path": "/a", "uri": "/b"}, "/a"), ({"uri": "/%s?x" % ("b" * 300)}, "/" + "b" * 199)],
)
def test_a_page_is_a_path_of_200_characters_at_most(fields, page):
    assert parsed(msec=5, **fields).page == page


@pytest.mark.parametrize(
    ("status", "upstream", "own"),
    [(500, {}, True), (500, {"upstream_status": "599"}, True), (500, {"upstream_status": "600"}, False),
     (500, {"upstream_status": "499"}, False), (404, {"upstream_status": "500"}, False)],
)  # fmt: skip
def test_only_a_5xx_of_the_application_counts_for_it(status, upstream, own):
    assert symptoms.parse(json.dumps({"msec": 5, "status": status, **upstream})).by_application is own


def test_at_most_a_few_megabytes_of_a_log_are_read(monkeypatch):
    limits = []
    monkeypatch.setattr(symptoms.safe_files, "read_tail", lambda _path, limit: limits.append(limit) or b"")
    assert symptoms.logged("/log") == [] and 1 << 20 <= limits[0] <= 16 << 20


def test_requests_of_a_time_are_read_from_a_log(tmp_path):
    log = tmp_path / "access.log"
    log.write_text("".join('{"msec": %d, "status": 200}\n' % at for at in (1, 2, 3, 4)) + "no request\n")
    assert [one.at for one in symptoms.logged(str(log), 2, 4)] == [2, 3]
    assert [one.at for one in symptoms.logged(str(log))] == [1, 2, 3, 4]
    assert symptoms.logged(str(tmp_path / "none")) == []


# --- pages ----------------------------------------------------------------------------------------------------------


def test_the_number_of_pages_has_a_limit(monkeypatch):
    monkeypatch.setattr(symptoms, "_MOST_PAGES", 2)
    found = symptoms.counts([request(1, page=page, status=500) for page in ("/a/", "/b/", "/c/", "/a/")])
    assert found == {"/a/": (2, 2), "/b/": (1, 1)}


@pytest.mark.parametrize(("before", "result"), [((10, 5), True), ((10, 4), False), ((10, 0), False), (None, False)])
def test_a_page_failed_before_if_at_least_half_as_often(before, result):
    assert symptoms.failed_before("/", 6, 6, {"/": before} if before else {}) is result


def test_the_pages_that_fail_most_come_first_and_are_at_most_twenty():
    requests = [request(at, 503, page) for at in range(9) for page in ("/a/", "/b/")]
    requests += [request(at, 500, "/b/") for at in (20, 21)]
    requests += [request(at, 502, "/x%s/" % chr(97 + at)) for at in range(25)]
    found = symptoms.failing(requests[::-1], {"/": (10, 0)})
    assert [one["errors"] for one in found] == [11, 9, *[1] * 18]
    assert found[0] == {
        "page": "/b/", "status": 500, "errors": 11, "requests": 11, "often": True, "own_errors": 2, "first": 0.0,
        "last": 21.0, "seconds": 0.1, "new": True,
    }  # fmt: skip


@pytest.mark.parametrize(("good", "often"), [(9, True), (10, False)])
def test_a_page_fails_often_from_half_of_its_requests_on(good, often):
    requests = [request(at, 200) for at in range(good)] + [request(20 + at, 500) for at in range(9)]
    assert symptoms.failing(requests)[0]["often"] is often


# --- getting a page -------------------------------------------------------------------------------------------------


class Site:
    """probe.http_get, which gives one response after the other and notes the requests."""

    def __init__(self, monkeypatch):
        self.responses, self.requests, self.more = [], [], {}
        monkeypatch.setattr(symptoms.probe, "http_get", self.http_get)

    def http_get(self, target, **more):
        self.requests.append((target, more))
        status, location = self.responses.pop(0) if len(self.responses) > 1 else self.responses[0]
        headers = dict(self.more, **({} if location is None else {"location": location}))
        return symptoms.probe.HttpResult(status, 0.1, "", None if status else "refused", headers=headers)

    def get(self, *responses, host="shift.example.jp:8000", **more):
        self.responses, self.requests = list(responses), []
        result = symptoms.get_page("http://localhost", "/", host, 9.0, **more)
        return result.status, [more["path"] for _target, more in self.requests]


@pytest.fixture
def site(monkeypatch):
    return Site(monkeypatch)


def test_a_page_is_requested_like_a_user_request_over_tls(site):
    assert site.get((200, None)) == (200, ["/"])
    ((target, sent),) = site.requests
    assert (target, sent["host"], sent["headers"], sent["verify"]) == (
        "http://localhost", "shift.example.jp:8000", {"X-Forwarded-Proto": "https"}, True,
    )  # fmt: skip
    assert 8 < sent["timeout"] <= 9
    site.get((200, None), verify=False)
    assert site.requests[0][1]["verify"] is False


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_the_target_of_a_redirect_is_requested(site, status):
    assert site.get((status, "/login/?next=/"), (200, None)) == (200, ["/", "/login/?next=/"])
    assert site.get((status, "https://shift.example.jp/login/"), (200, None)) == (200, ["/", "/login/"])


@pytest.mark.parametrize("location", ["https://elsewhere.example.jp/", "login/", "", None])
def test_other_sites_are_not_requested(site, location):
    assert site.get((302, location), (200, None)) == (302, ["/"])
    assert site.get((302, location), (200, None), host=None) == (302, ["/"])


def test_a_page_that_redirects_to_itself_is_not_served(site):
    """As after a proxy that uses http to an application which requires https."""
    assert site.get((301, "https://shift.example.jp/")) == (None, ["/"])
    assert site.get((302, "/login/"), (302, "/"), (302, "/login/")) == (None, ["/", "/login/"])
    assert symptoms.page_problem("http://localhost", "/", "shift.example.jp", 9.0)
    assert site.get((304, "/")) == (304, ["/"])


def test_a_page_may_redirect_to_itself_with_a_cookie(site):
    site.more = {"set-cookie": "a=b"}
    assert site.get((302, "/")) == (302, ["/"] * 3)


def test_a_page_is_not_waited_for_beyond_the_deadline(site):
    result = symptoms.get_page("http://localhost", "/", None, -1)
    assert (result.status, result.seconds, result.reason, site.requests) == (None, -1, "timeout", [])


@pytest.mark.parametrize(
    ("before", "now", "refused"),
    [
        ([200] * 20, [200] * 4 + [403] * 8, True),
        # Rejected as often before; too few; it has ended; a page that was hardly ever requested; one client's limit.
        ([403] * 10 + [200] * 10, [200] * 4 + [403] * 8, False),
        ([200] * 20, [403] * 4, False),
        ([200] * 20, [403] * 8 + [200] * 30, False),
        ([200] * 5, [403] * 8, False),
        ([200] * 20, [429] * 8, False),
        ([200] * 20, [200] * 40 + [403] * 6, False),
    ],
)
def test_a_page_that_was_served_and_is_rejected_now_is_a_symptom(before, now, refused):
    earlier, recent = (
        [symptoms.Request(at, status, 0.1, "/assign/#") for at, status in enumerate(codes, start)]
        for start, codes in ((0, before), (1000, now))
    )
    found = symptoms.refused(recent, earlier)
    assert [(one["page"], one["status"]) for one in found] == ([("/assign/#", 403)] if refused else [])


@pytest.mark.parametrize(
    ("status", "problem"),
    [(200, ""), (404, ""), (499, ""), (500, "/: HTTP 500"), (503, "/: HTTP 503"), (None, "/: refused")],
)
def test_a_page_without_a_response_or_with_5xx_is_not_served(site, status, problem):
    site.responses = [(status, None)]
    assert symptoms.page_problem("http://localhost", "/", "host", 9.0) == problem
    assert site.requests[0][1]["verify"] is True


@pytest.mark.parametrize(
    ("accepted", "shown_again", "found"), [(10, 5, True), (8, 5, False), (10, 4, False), (0, 20, False)]
)
def test_a_form_that_was_accepted_before_and_is_shown_again_is_rejected(accepted, shown_again, found):
    def form(at, status):
        return symptoms.Request(float(at), status, 0.1, "/login/", method="POST")

    before = [form(at, 302) for at in range(accepted)] + [form(50 + at, 200) for at in range(accepted // 5)]
    now = [form(100 + at, 200) for at in range(shown_again)]
    pages = symptoms.refused(now, before)
    assert [(one["page"], one["status"], one["errors"]) for one in pages] == (
        [("/login/", 200, shown_again)] if found else []
    )
    # To show the page is none: it is requested by GET.
    assert symptoms.refused([one._replace(method="GET") for one in now], before) == []
