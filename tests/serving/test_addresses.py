"""Addresses inside, in every way in which somebody might write one; and those outside, which are let through."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.tools.addresses import internal_addresses, is_inside

INSIDE = [
    "http://127.0.0.1/", "http://127.1:8080/x", "https://0/", "http://2130706433/", "http://0x7f.1/", "http://0177.0.0.1/", "http://[::1]/",
    "http://[::ffff:10.0.0.1]/", "http://[64:ff9b::a00:1]/", "http://[2002:a00:1::]/", "http://169.254.169.254/latest/meta-data",
    "http://10.1.2.3", "HTTP://192.168.0.1", "http://100.64.0.1", "http://localhost", "http://LOCALHOST./", "http://db.internal:5432",
    "http://printer.local", "http://metadata.google.internal/", "http://user:pw@127.0.0.1/", "http://example.com@10.0.0.1/",
    "http:\\\\127.0.0.1\\x", "http:/127.0.0.1/", "http:///127.0.0.1/", "gopher://127.0.0.1:6379/_INFO", "ftp://10.0.0.1/", "file:///etc/passwd",
    "jar:file:///x", "http://127.0.0.1\u3002", "http://127\u30020\u30020\u30021/", "http://%31%32%37.0.0.1/", "http://[fe80::1%25eth0]/",
    "http://[:::]/", "http://0.0.0.0:80/", "ws://172.16.0.9/",
]  # fmt: skip
OUTSIDE = [
    "https://example.com/a?b=127.0.0.1", "http://8.8.8.8/", "http://[2606:4700::1111]/", "https://localhost.example.com/", "a/127.0.0.1",
    "What does 10.0.0.1 mean?", "note: see 10-K", "ratio 3:1", "http://1.2.3.4.5/", "mailto:ann@localhost", "https://10.example.org/", "",
]  # fmt: skip


@pytest.mark.parametrize("url", INSIDE)
def test_an_address_inside_is_known_however_it_is_written(url):
    assert internal_addresses(url)
    assert internal_addresses({"a": [{"b": f"see <{url}> please"}]})
    assert internal_addresses({url: 1})


@pytest.mark.parametrize("text", OUTSIDE)
def test_all_else_is_let_through(text):
    assert internal_addresses({"a": [text, 1, None, {"b": text}]}) == ""


@given(st.integers(0, 2**32 - 1))
def test_an_address_as_one_number_is_the_same_address(number):
    address = ipaddress.IPv4Address(number)
    written = {f"http://{address}/", f"http://{number}/", f"http://{number:#x}/"}
    assert {bool(internal_addresses(url)) for url in written} == {is_inside(str(address))}


@given(st.text() | st.text().map(lambda text: f"http://{text}"))
def test_no_text_makes_it_fail(text):
    internal_addresses({"a": text})
