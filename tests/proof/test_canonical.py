"""The bytes that a digest covers are read back as the row that they were made of."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pharox.errors import InvalidInputError
from pharox.events import ENVELOPE, decode
from pharox.log.canonical import canonical, row_of
from pharox.log.rows import event_from_row, row_from_event

EXAMPLES = sorted((Path(__file__).parents[1] / "data" / "events").glob("*.json"))
TEXTS = st.none() | st.text(alphabet=st.sampled_from("a',\\E{}\"\n N\N{SNOWMAN}"), max_size=12)
MOMENTS = st.none() | st.datetimes(
    min_value=datetime(1900, 1, 1), max_value=datetime(2900, 1, 1), timezones=st.just(UTC)
)
NUMBERS = st.none() | st.integers(-(2**31), 2**31 - 1)
IDS = st.none() | st.uuids()


@given(
    texts=st.lists(TEXTS, min_size=8, max_size=8),
    moments=st.lists(MOMENTS, min_size=2, max_size=2),
    numbers=st.lists(NUMBERS, min_size=4, max_size=4),
    ids=st.lists(IDS, min_size=3, max_size=3),
    proxy_ids=st.none() | st.lists(st.uuids(), max_size=3),
    data=st.none() | st.dictionaries(st.text(max_size=3), st.text(max_size=9), max_size=3),
)
def test_every_row_is_read_back(
    texts: list[str | None],
    moments: list[datetime | None],
    numbers: list[int | None],
    ids: list[object],
    proxy_ids: list[object] | None,
    data: dict[str, str] | None,
) -> None:
    """Whatever is in its texts: quotes, backslashes, commas, braces, line feeds."""
    row: dict[str, Any] = {
        "position": 7,
        "tx": 8,
        "recorded_at": moments[0] or datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC),
        "type": texts[0] or "",
        "schema_version": 1,
        "pool_id": ids[0],
        "expires_at": moments[0],
        "acquired_at": moments[1],
        "proxy_ids": proxy_ids,
        **dict(zip(("proxy_id", "lease_id", "consumer_id"), ids, strict=True)),
        **dict(
            zip(
                ("consumer", "pool_name", "status_before", "status_after", "selector", "actor"),
                texts[1:7],
                strict=True,
            )
        ),
        "correlation_id": texts[7],
        **dict(
            zip(
                [
                    f"{name}_{s}"
                    for name in ("leases", "max_concurrency")
                    for s in ("before", "after")
                ],
                numbers,
                strict=True,
            )
        ),
    }
    content = canonical({**row, "data": None if data is None else json.dumps(data)})
    assert row_of(content) == {**row, "data": data}


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_every_type_of_event_survives_a_log_in_memory(file: Path) -> None:
    """As a row, as bytes, and back."""
    stored = json.loads(file.read_text())
    event = decode({name: stored[name] for name in ENVELOPE}, stored["data"])
    assert event_from_row(row_of(canonical(row_from_event(event)))) == event


@pytest.mark.parametrize("content", [b"", b"1", b"2,", b"\xff", b"1," * 30, b"1,1,1,1,'a"])
def test_what_is_no_event_is_refused(content: bytes) -> None:
    """With an error of ours."""
    with pytest.raises(InvalidInputError):
        row_of(content)
