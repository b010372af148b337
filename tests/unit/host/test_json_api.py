"""host.json_api: its requests, and what becomes of their responses, without a server."""

from __future__ import annotations

import io
import json
import urllib.error
import urllib.request

import pytest
from ansible.module_utils.shiftmaster.host import json_api
from ansible.module_utils.shiftmaster.host.json_api import Api, Failed, NoResponse


class Response(io.BytesIO):
    def __init__(self, status, data):
        super().__init__(data)
        self.status, self.headers = status, {"Date": "now"}


class Opener:
    """An opener for urllib: it records requests and returns one response."""

    def __init__(self, monkeypatch):
        self.handlers, self.opened, self.response, self.made = [], [], (200, b"{}"), 0
        monkeypatch.setattr(urllib.request, "build_opener", self.build)

    def build(self, *handlers):
        self.handlers, self.made = handlers, self.made + 1
        return self

    def open(self, request, timeout):
        self.opened.append((request, timeout))
        if isinstance(self.response, Exception):
            raise self.response
        status, data = self.response
        if status >= 400:
            raise urllib.error.HTTPError(request.full_url, status, "x", {}, io.BytesIO(data))
        return Response(status, data)


@pytest.fixture
def opener(monkeypatch):
    return Opener(monkeypatch)


def test_a_request_has_its_address_login_headers_and_body(opener):
    api = Api("http://localhost:9200/", login=("user", "パス"), timeout=7, headers={"kbn-xsrf": "true"})
    opener.response = 201, b'{"a": 1}'
    assert api.send("/x", "PUT", {"b": 2}) == (201, {"a": 1}) and api.date == "now"
    ((request, timeout),) = opener.opened
    assert (request.full_url, request.get_method(), timeout) == ("http://localhost:9200/x", "PUT", 7)
    assert json.loads(request.data) == {"b": 2}
    assert {name.lower(): value for name, value in request.header_items()} == {
        "accept": "application/json", "kbn-xsrf": "true", "content-type": "application/json",
        "authorization": "Basic dXNlcjrjg5Hjgrk=",
    }  # fmt: skip


def test_a_request_without_a_login_and_body_has_neither(opener):
    Api("http://localhost").send("/")
    ((request, timeout),) = opener.opened
    assert [name.lower() for name, _value in request.header_items()] == ["accept"]
    assert (request.get_method(), request.data, timeout) == ("GET", None, 30)


def test_a_request_may_have_another_login_and_kind_of_body(opener):
    Api("http://localhost", login=("user", "x")).send("/", "POST", data=b"raw", kind="text/plain", login=("a", "b"))
    ((request, _timeout),) = opener.opened
    assert request.data == b"raw" and request.get_header("Content-type") == "text/plain"
    assert request.get_header("Authorization") == "Basic YTpi"


def test_no_proxy_is_used_and_tls_is_verified_with_the_authority_of_the_site(opener, tmp_path):
    api = Api("http://localhost")
    api.send("/")
    api.send("/")
    assert [type(one) for one in opener.handlers] == [urllib.request.ProxyHandler] and opener.made == 1
    assert opener.handlers[0].proxies == {}
    Api("https://localhost").send("/")
    assert [type(one) for one in opener.handlers[1:]] == [urllib.request.HTTPSHandler]
    with pytest.raises(NoResponse, match="nowhere"):
        Api("https://localhost", ca_file=str(tmp_path / "nowhere")).send("/")


def test_a_status_that_is_not_fine_is_a_failure(opener):
    opener.response = 404, b'{"error": "none"}'
    api = Api("http://localhost")
    assert api.send("/x") == (404, {"error": "none"})
    assert api.call("/x", fine=(200, 404)) == {"error": "none"}
    with pytest.raises(Failed, match="GET /x .*404: none") as caught:
        api.call("/x")
    assert caught.value.status == 404 and not isinstance(caught.value, NoResponse)
    opener.response = 200, b"[1]"
    assert api.call("/x") == [1] and opener.opened[-1][0].get_method() == "GET"


@pytest.mark.parametrize("error", [urllib.error.URLError("refused"), OSError("refused")])
def test_a_service_that_does_not_respond_is_distinguished_from_one_that_refuses(opener, error):
    opener.response = error
    with pytest.raises(NoResponse, match="http://localhost/x: refused") as caught:
        Api("http://localhost").call("/x")
    assert caught.value.status is None


@pytest.mark.parametrize(("data", "value"), [(b'{"a": 1}', {"a": 1}), (b"text \xff", "text �"), (b"", "")])
def test_a_response_is_json_or_text(data, value):
    assert json_api.decoded(data) == value


@pytest.mark.parametrize(
    ("reply", "text"),
    [
        ({"error": {"reason": "r", "message": "m"}, "message": "x"}, "r"),
        ({"error": {"message": "m"}, "message": "x"}, "m"),
        ({"error": {"code": 1}, "message": "x"}, "x"),
        ({"error": {"code": 1}}, '{"code": 1}'),
        ({"error": "e", "message": "x"}, "x"),
        ({"error": "e"}, "e"),
        ({"message": "x"}, "x"),
        ({"b": 2, "a": 1}, '{"a": 1, "b": 2}'),
        ([1, 2], "[1, 2]"),
        (" a\n b ", "a b"),
        ("x" * 301, "x" * 300),
    ],
)
def test_an_error_is_one_line_of_its_reason(reply, text):
    assert json_api.message_of(reply) == text


@pytest.mark.parametrize(
    ("raised", "check_mode", "done", "result"),
    [
        (None, False, [], {"changed": False, "done": [], "diff": {"before": "", "after": ""}, "fact": 1}),
        (None, True, ["a"], {"changed": True, "done": ["a"], "diff": {"before": "", "after": "a\n"}, "fact": 1}),
        (NoResponse("refused"), False, [], {"failed": True, "msg": "x does not respond: refused"}),
        (NoResponse("refused"), True, [], {"changed": True, "done": ["x does not run yet; the rest would follow"]}),
        (Failed("403"), True, ["a"], {"failed": True, "msg": "x: 403", "done": ["a"]}),
    ],
)  # fmt: skip
def test_the_result_of_a_module_that_manages_objects_of_a_service(raised, check_mode, done, result):
    class Instance:
        def run(self):
            if raised:
                raise raised
            return {"fact": 1}

    class Module:
        def exit_json(self, **result):
            raise SystemExit(result)

        def fail_json(self, **result):
            raise SystemExit(dict(result, failed=True))

    module, instance = Module(), Instance()
    module.check_mode, instance.done = check_mode, done
    with pytest.raises(SystemExit) as ended:
        json_api.keep(module, "x", instance)
    assert ended.value.code == result


def test_a_name_in_an_address_is_quoted():
    assert json_api.quoted("a/b c?") == "a%2Fb%20c%3F"
