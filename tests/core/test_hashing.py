import hashlib
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from prefstage.core.files import digest, digest_file


@given(st.dictionaries(st.text(), st.integers() | st.text()))
def test_key_order_does_not_matter(value: dict[str, object]) -> None:
    assert digest(value) == digest(dict(reversed(value.items())))


def test_digest_is_sha256_of_the_canonical_text() -> None:
    expected = hashlib.sha256(b'{"a":[1,"\\u00e4"]}').hexdigest()
    assert digest({"a": [1, "ä"]}, length=64) == expected
    assert digest({"a": [1, "ä"]}) == expected[:16]


def test_values_that_differ_hash_differently() -> None:
    values = [1, "1", [1], [[1]], {"a": 1}, None, True, 1.5, "", []]
    assert len({digest(value) for value in values}) == len(values)


def test_what_has_no_canonical_text_is_refused() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        digest(float("nan"))
    with pytest.raises(TypeError):
        digest(object())


def test_file_digest(tmp_path: Path) -> None:
    data = bytes(range(256)) * 5000
    (tmp_path / "a").write_bytes(data)
    assert digest_file(tmp_path / "a") == hashlib.sha256(data).hexdigest()[:16]
    assert digest_file(tmp_path / "a", length=8) == hashlib.sha256(data).hexdigest()[:8]
