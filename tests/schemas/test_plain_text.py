"""What may be shown: no escape reaches a terminal, no key leaves a URI; and names that look alike stay."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from schemas.errors import InputError, SettingsError
from schemas.plain_text import holds_secret, printable, without_secrets
from schemas.settings.data import InputSettings, WarehouseSettings

SECRETS = [
    "s3a://AKIAKEY:TOPSECRET@bucket/warehouse", "s3://AKIAKEY:top/SECRET+x=@bucket/warehouse", "s3://TOPSECRET@bucket",
    "https://user:TOPSECRET@host:8080/x", "abfss://c@account/x?sig=TOPSECRET", "gs://bucket/x?access_token=TOPSECRET&a=1",
    "s3://bucket/x?region=eu&secret_key=TOPSECRET", "hdfs://me:TOPSECRET@node:8020/x", "s3://:TOPSECRET@bucket/x",
]  # fmt: skip
PLAIN = [
    "s3://bucket/user@home", "hdfs://namenode:8020/a@b", "hdfs://me@namenode:8020/x", "abfss://container@account/x",
    "/data/a:b@c", "file:///data/a:b@c", "https://host:443", "gs://anonymous@bucket/x",
]  # fmt: skip


@pytest.mark.parametrize("uri", SECRETS)
@pytest.mark.fault("S5", "loud", "a URI with a key in the settings, and in an error")
def test_a_key_is_refused_in_settings_and_never_repeated(uri: str) -> None:
    assert holds_secret(uri)
    for text in (without_secrets(uri), str(InputError("w", "uri", expected="a", found=uri, cure="c")),
                 str(SettingsError(f"warehouse.uri (found {uri!r})\nsecond {uri} line"))):  # fmt: skip
        assert "SECRET" not in text
        assert "***" in text
    for section, key in ((WarehouseSettings, "uri"), (InputSettings, "items")):
        with pytest.raises(ValidationError, match="holds a key or a password"):
            section(**{key: uri})


@pytest.mark.parametrize("uri", PLAIN)
def test_a_uri_without_a_key_stays_as_it_is(uri: str) -> None:
    assert not holds_secret(uri)
    assert without_secrets(f"found {uri}: no such table") == f"found {uri}: no such table"
    assert WarehouseSettings(uri=uri).uri == uri


@pytest.mark.fault("S3", "recovered", "terminal escapes, bidirectional marks and line breaks in a title")
def test_a_title_cannot_command_the_terminal() -> None:
    title = "red\x1b]0;pwned\x07 \x1b[2J\x9b31m shoe\r\u202eexe\u2028\x00\ud800 \u0938\u094d\u200d\u0930 \U0001f45f"
    said = printable(title)
    expected = r"red\x1b]0;pwned\x07 \x1b[2J\x9b31m shoe\r\u202eexe\u2028\x00\ud800"
    assert said == expected + " \u0938\u094d\u200d\u0930 \U0001f45f"
    assert printable("a\n\tb\x1b", lines=True) == "a\n\tb\\x1b"
    assert "\x1b" not in str(InputError("t", "c", expected="a", found=title, cure="c"))
