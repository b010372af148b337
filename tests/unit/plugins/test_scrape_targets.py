"""Hosts as targets of Prometheus."""

from __future__ import annotations

import pytest
from ansible.errors import AnsibleFilterError
from scrape_targets import scrape_targets

ADDRESSES = {"app1": "192.0.2.11", "db1": "2001:db8::21", "new1": ""}


def test_each_host_is_a_target_with_its_functions_in_their_order():
    found = scrape_targets(
        ["db1", "app1"], ADDRESSES, 9100, env="test", functions={"web": ["app1"], "app": ["app1"], "database": ["db1"]}
    )
    assert found == [
        {"address": "[2001:db8::21]:9100", "labels": {"env": "test", "instance": "db1", "role": "database"}},
        {"address": "192.0.2.11:9100", "labels": {"env": "test", "instance": "app1", "role": "web,app"}},
    ]


def test_without_a_port_the_address_is_the_target():
    assert [target["address"] for target in scrape_targets(["db1"], ADDRESSES)] == ["2001:db8::21"]


@pytest.mark.parametrize("host", ["new1", "other"])
def test_a_host_without_an_address_is_rejected(host):
    with pytest.raises(AnsibleFilterError, match=host):
        scrape_targets([host], ADDRESSES, 9100)
