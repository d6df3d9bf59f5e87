"""Parsing amounts of memory."""

import pytest
from dgpt2_quant.core.errors import UsageError
from dgpt2_quant.core.sizes import parse_bytes


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4096", 4096),
        ("48MB", 48_000_000),
        ("1.5 GiB", 3 << 29),
        ("64mib", 64 << 20),
        ("2k", 2000),
        ("0", 0),
        ("7 b", 7),
    ],
)
def test_valid_sizes(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "MB", "-1", "1e9", "1TB", "1,5GB", "٣", "nan", "9" * 50])
def test_invalid_sizes_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is not a size"):
        parse_bytes(text)
