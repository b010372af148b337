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
def test_the_application_is_told_from_the_web_server(status, upstream, own):
    line = json.dumps({"msec": 5.0, "status": status, "path": "/x/", "request_time": 1, "upstream_status": upstream})
    assert symptoms.parse(line).by_application == own


def test_pages_are_told_apart_without_numbers_and_queries():
    lines = [json.dumps({"msec": 5.0, "status": 200, "uri": uri}) for uri in ("/shift/17/?day=3", "/shift/18/", "/")]
    assert symptoms.counts(map(symptoms.parse, lines)) == {"/shift/#/": (2, 0), "/": (1, 0)}


@pytest.mark.parametrize(
    ("failed", "more"),
    [
        ("......", False),
        ("..xx..xx..", True),  # Every second one fails.
        ("....xxxx", True),
        ("....xxxx..", True),  # Too few since to say.
        ("....xxxx...", False),  # An outage that is over.
        ("x.........x.........", True),  # One in ten.
        ("xxxx" + "." * 90, False),
    ],
)
def test_errors_go_on_until_enough_requests_have_succeeded(failed, more):
    assert symptoms.goes_on([one == "x" for one in failed]) == more


def test_a_short_outage_of_all_pages_is_over_by_all_of_them():
    """Each page alone was asked for once since."""
    pages = ["/a/", "/b/", "/c/", "/d/"]
    outage = [request(10 + number, 500, page) for number, page in enumerate(pages)]
    assert len(symptoms.failing(outage)) == 4
    assert symptoms.failing(outage + [request(20 + number, 200, page) for number, page in enumerate(pages)]) == []


def test_a_page_that_fails_among_good_ones_is_found_with_its_numbers():
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
        ({"/": (100, 0)}, True),  # The page is new.
        ({"/bad/": (100, 1)}, True),  # An outage of before.
        ({"/bad/": (10, 6), "/": (10, 0)}, False),
    ],
)
def test_only_what_the_release_before_did_not_show_is_new(before, new):
    assert symptoms.failing([request(at, 500, "/bad/") for at in range(9)], before)[0]["new"] == new
