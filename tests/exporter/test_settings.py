"""Settings from text: addresses, URLs, sizes, token files and the data directory."""

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from optwrap_exporter.settings import (
    Address,
    Settings,
    default_data_dir,
    parse_address,
    parse_size,
    parse_web_url,
    read_token,
)


@given(
    host=st.one_of(
        st.ip_addresses(v=4).map(str),
        st.ip_addresses(v=6).map(str),
        st.from_regex(r"[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?(\.[a-z]{2,5})?", fullmatch=True),
    ),
    port=st.integers(0, 65535),
)
def test_an_address_reads_back_as_it_was_written(host: str, port: int) -> None:
    address = Address(host, port)
    assert parse_address(str(address)) == address


@pytest.mark.parametrize(
    "text",
    ["", "localhost", "127.0.0.1:", "127.0.0.1:65536", "127.0.0.1:-1", "::1:80", "[::1]", "[x]:1", "a b:1", "a:１"],
)
def test_an_invalid_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="host:port") as caught:
        parse_address(text)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "grafana",
        "ftp://a",
        "javascript:alert(1)",
        "http://",
        "http://u:p@a",
        "http://a?b=c",
        "http://a#b",
        "http://a b",
    ],
)
def test_an_invalid_url_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="https://grafana") as caught:
        parse_web_url(text)
    assert repr(text) in str(caught.value)


@given(st.text(max_size=30))
def test_any_text_is_an_address_or_a_value_error(text: str) -> None:
    with contextlib.suppress(ValueError):
        assert 0 <= parse_address(text).port <= 65535


@pytest.mark.parametrize(
    ("listen", "loopback"),
    [
        ("127.0.0.1:1", True),
        ("127.8.8.8:1", True),
        ("[::1]:1", True),
        ("localhost:1", True),
        ("0.0.0.0:1", False),
        (":1", False),
        ("[::]:1", False),
        ("192.0.2.7:1", False),
        ("localhost.example.com:1", False),
    ],
)
def test_reports_over_tcp_need_loopback_or_a_token(listen: str, loopback: bool, tmp_path: Path) -> None:
    address = parse_address(listen)
    assert address.loopback is loopback
    assert Settings((address,), tmp_path).closed == (() if loopback else (address,))
    assert Settings((address,), tmp_path, token="t").closed == ()


def test_the_repr_of_settings_has_no_token(tmp_path: Path) -> None:
    assert "hush" not in repr(Settings((parse_address(":1"),), tmp_path, token="hush", webhook="http://h/hush"))


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1048576", 1 << 20),
        ("1MiB", 1 << 20),
        ("2 GiB", 2 << 30),
        ("1.5gib", 3 << 29),
        ("500MB", 500_000_000),
        ("1TB", 10**12),
    ],
)
def test_sizes_may_have_a_unit(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "-1", "1048575", "12 parsecs", "1e9", "GiB", "nan", "٣GiB"])
def test_an_invalid_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"1MiB|1GiB") as caught:
        parse_size(text)
    assert repr(text) in str(caught.value)


def test_a_token_is_the_files_line_without_white_space(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("  s3cret~\n")
    assert read_token(file) == "s3cret~"


@pytest.mark.parametrize("content", [b"", b"\n", b"two words", b"two\nlines", b"\xff\xfe", b"x" * 4097])
def test_a_file_without_a_token_is_refused(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_bytes(content)
    with pytest.raises(ValueError, match="token") as caught:
        read_token(file)
    assert str(file) in str(caught.value)


def test_the_data_directory_follows_xdg(tmp_path: Path) -> None:
    assert default_data_dir({"XDG_STATE_HOME": str(tmp_path)}) == tmp_path / "optwrap-exporter"
    assert default_data_dir({"XDG_STATE_HOME": "relative/ignored"}).parts[-3:] == (
        ".local",
        "state",
        "optwrap-exporter",
    )
