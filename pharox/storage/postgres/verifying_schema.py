"""Compare the functions of a ledger, and what protects its log, with what the migrations define.

The owner of a database can replace a function, or take a trigger away, and every other check asks
the database, which answers by that function. So the bodies and attributes that the catalog has
are compared with the text of the migrations, and the triggers of the log with those that they
create. Nobody but the owner can change the catalog; who can, may also put it back after the deed.
That is found by checkpoints alone.

Decisions let an owner replace some functions: these are notes, and no findings. So is a schema of
another version, whose functions cannot be compared: the owner may have written that, too.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator, Mapping
from functools import lru_cache
from hashlib import sha256
from typing import Any, NamedTuple

from psycopg import sql

import projections
from projections import Finding

from .driver import Session
from .functions import others_function
from .migrations import HEAD
from .migrations.texts import spelled, texts
from .sql import Statement

FUNCTIONS, TRIGGERS = "functions", "triggers"

REPLACEABLE = {"clock": "0006", "partition_rows": "0015", "fold_others_v1": "0031"}
"""Functions that an owner may replace, each with the decision that says so."""

_FUNCTION = re.compile(
    r"^CREATE (?:OR REPLACE )?FUNCTION \{schema\}\.(?P<name>\w+)(?P<head>.*?)"
    r"^AS (?:\$\$(?P<body>.*?)\$\$|'(?P<text>(?:[^']|'')*)')(?P<tail>[^;]*);"
    r"|^ALTER FUNCTION \{schema\}\.(?P<old>\w+)\([^)]*\)\s+RENAME TO (?P<new>\w+);"
    r"|^ALTER FUNCTION \{schema\}\.(?P<set>\w+) (?P<setting>SET \w+ = \w+);",
    re.MULTILINE | re.DOTALL,
)
_SET = re.compile(r"^SET (\w+) = (.*)$", re.MULTILINE)
_VOLATILE = re.compile(r"^(IMMUTABLE|STABLE)$", re.MULTILINE)
_LANGUAGE = re.compile(r"^LANGUAGE (\w+)$", re.MULTILINE)


class Definition(NamedTuple):
    """What makes a function do what it does. ``body`` is a hash of its text."""

    body: str
    language: str
    volatility: str
    owners_rights: bool
    settings: str


_FOUND = """
    SELECT p.proname::text, pg_catalog.pg_get_function_identity_arguments(p.oid), p.prosrc,
           l.lanname::text, p.provolatile::text, p.prosecdef,
           pg_catalog.array_to_string(p.proconfig, E'\\n')
    FROM pg_catalog.pg_proc AS p JOIN pg_catalog.pg_language AS l ON l.oid = p.prolang
    WHERE p.pronamespace = (SELECT oid FROM pg_catalog.pg_namespace WHERE nspname = {ledger})
    ORDER BY p.proname, 2
"""
_FOUND_COLUMNS = ("name", "arguments", "body", "language", "volatility", "rights", "settings")

_PROTECTED = """
    SELECT c.relname::text AS table_name, t.tgname::text, t.tgtype::int, t.tgenabled::text,
           p.proname::text, coalesce(t.tgattr::text, '') || coalesce(
               substring(pg_catalog.pg_get_triggerdef(t.oid) FROM ' (WHEN .*) EXECUTE'), ''),
           p.pronamespace = c.relnamespace
    FROM pg_catalog.pg_class AS c
    LEFT JOIN pg_catalog.pg_trigger AS t ON t.tgrelid = c.oid AND NOT t.tgisinternal
    LEFT JOIN pg_catalog.pg_proc AS p ON p.oid = t.tgfoid
    WHERE c.relnamespace = (SELECT oid FROM pg_catalog.pg_namespace WHERE nspname = {ledger})
      AND (c.relname IN ('events', 'seals', 'ticks', 'last_tick', 'tree_nodes')
           OR c.oid IN (SELECT i.inhrelid FROM pg_catalog.pg_inherits AS i
                        JOIN pg_catalog.pg_class AS parent ON parent.oid = i.inhparent
                        WHERE parent.relnamespace = c.relnamespace
                          AND parent.relname IN ('events', 'seals')
                          AND c.relkind IN ('r', 'p')))
    ORDER BY 1, 2
"""
_PROTECTED_COLUMNS = ("table", "name", "type", "enabled", "function", "only", "own")

_RULES = """
    SELECT c.relname::text, r.rulename::text
    FROM pg_catalog.pg_rewrite AS r JOIN pg_catalog.pg_class AS c ON c.oid = r.ev_class
    WHERE c.relnamespace = (SELECT oid FROM pg_catalog.pg_namespace WHERE nspname = {ledger})
      AND c.relkind IN ('r', 'p')
    ORDER BY 1, 2
"""
_VERSION = "SELECT version_num::text FROM {schema}.alembic_version"

_EACH_STATEMENT = 2 | 8 | 16 | 32
"""BEFORE DELETE OR UPDATE OR TRUNCATE, for each statement, as the catalog has it."""
_APPEND_ONLY = {"events_are_append_only": (_EACH_STATEMENT, "")}
_LAST_TICK = {
    "last_tick_goes_forward": (1 | 2 | 16, "WHEN ((new.last_seq <= old.last_seq))"),
    "last_tick_stays": (2 | 8 | 32, ""),
}


def verify_schema(session: Session, ledger: str) -> Generator[Finding]:
    """Yield the functions that were replaced, and what no longer protects the log."""
    if _is_of_this_version(session, ledger):
        for name, found, expected in _differing_functions(session, ledger):
            if name not in REPLACEABLE or found is None:
                yield Finding(FUNCTIONS, {"function": name}, found, expected)
    yield from _triggers(session, ledger)


def schema_notes(session: Session, ledger: str) -> Generator[str]:
    """Yield which functions an owner replaced who may, or that none were compared; sentences."""
    if not _is_of_this_version(session, ledger):
        version = ", ".join(_versions(session, ledger)) or "none"
        yield f"functions were not compared: the schema's version is {version}, not {HEAD}"
        return
    for name, found, _ in _differing_functions(session, ledger):
        if name in REPLACEABLE and found is not None:
            yield (
                f"the function {name}() is not the one of the schema; decision "
                f"{REPLACEABLE[name]} lets the ledger's owner replace it"
            )


def _is_of_this_version(session: Session, ledger: str) -> bool:
    """Return whether the schema is the one that this code's migrations make."""
    return _versions(session, ledger) == [HEAD]


def _versions(session: Session, ledger: str) -> list[str]:
    query = sql.SQL(_VERSION).format(schema=sql.Identifier(ledger))
    rows = session.rows(Statement(query.as_bytes(), (), {}, ("version",)))
    return [row["version"] for row in rows]


def _differing_functions(
    session: Session, ledger: str
) -> Iterator[tuple[str, dict[str, Any] | None, dict[str, Any] | None]]:
    known, others = defined_functions(ledger), _of_other_packages(ledger)
    seen = set()
    for row in session.rows(_query(_FOUND, ledger, _FOUND_COLUMNS)):
        name = row["name"]
        if name in seen and name in known:
            yield f"{name}({row['arguments']})", {"body": _hash(row["body"])}, None
        elif name in known and (found := _found(row)) not in (known[name], others.get(name)):
            yield (name, *_different(found, known[name]))
        seen.add(name)
    for name in sorted(known.keys() - seen):
        yield name, None, known[name]._asdict()


def _different(found: Definition, expected: Definition) -> tuple[dict[str, Any], dict[str, Any]]:
    names = [name for name in found._fields if getattr(found, name) != getattr(expected, name)]
    return tuple({name: getattr(each, name) for name in names} for each in (found, expected))  # type: ignore[return-value]


def _found(row: Mapping[str, Any]) -> Definition:
    return Definition(
        _hash(row["body"]),
        row["language"],
        row["volatility"],
        row["rights"],
        _sorted(row["settings"] or ""),
    )


@lru_cache(maxsize=8)
def defined_functions(ledger: str) -> Mapping[str, Definition]:
    """Return the functions that the migrations leave in a schema, by name."""
    functions: dict[str, Definition] = {}
    for text in texts():
        for found in _FUNCTION.finditer(text):
            if found["old"]:
                functions[found["new"]] = functions.pop(found["old"])
            elif found["set"]:
                known = functions[found["set"]]
                settings = _sorted(f"{known.settings}\n{_settings(found['setting'])}")
                functions[found["set"]] = known._replace(settings=settings)
            else:
                functions[found["name"]] = _defined(found, ledger)
    return functions


def _of_other_packages(ledger: str) -> Mapping[str, Definition]:
    """Return the function by which commands fold into read models of other packages."""
    others = [each for each in projections.registered() if each not in projections.ALL]
    (found,) = _FUNCTION.finditer(others_function(others))
    return {found["name"]: _defined(found, ledger)}


def _defined(found: re.Match[str], ledger: str) -> Definition:
    attributes = f"{found['head']}\n{found['tail']}"
    body = found["body"] if found["text"] is None else found["text"].replace("''", "'")
    volatility = _VOLATILE.search(attributes)
    language = _LANGUAGE.search(attributes)
    return Definition(
        _hash(spelled(body, ledger)),
        language[1] if language else "",
        volatility[1][0].lower() if volatility else "v",
        "SECURITY DEFINER" in attributes,
        _sorted(_settings(attributes)),
    )


def _settings(attributes: str) -> str:
    """Return what a function sets, as the catalog has it: a line each."""
    return "\n".join(f"{name}={value.strip(chr(39))}" for name, value in _SET.findall(attributes))


def _sorted(lines: str) -> str:
    return "\n".join(sorted(lines.splitlines()))


def _triggers(session: Session, ledger: str) -> Iterator[Finding]:
    """Yield the triggers of the log that are missing, disabled, changed or not ours; and rules."""
    by_table: dict[str, dict[str, dict[str, Any]]] = {}
    for row in session.rows(_query(_PROTECTED, ledger, _PROTECTED_COLUMNS)):
        triggers = by_table.setdefault(row["table"], {})
        if row["name"] is not None:
            triggers[row["name"]] = {
                "type": row["type"],
                "only": row["only"],
                "enabled": row["enabled"],
                "function": row["function"] if row["own"] else f"another {row['function']}",
            }
    for table, triggers in by_table.items():
        ours = _LAST_TICK if table == "last_tick" else _APPEND_ONLY
        for name in sorted(triggers.keys() | ours.keys()):
            found, expected = triggers.get(name), _expected(ours, name)
            if found != expected:
                yield Finding(TRIGGERS, {"table": table, "trigger": name}, found, expected)
    for row in session.rows(_query(_RULES, ledger, ("table", "rule"))):
        yield Finding(TRIGGERS, {"table": row["table"], "rule": row["rule"]}, {}, None)


def _expected(ours: Mapping[str, tuple[int, str]], name: str) -> dict[str, Any] | None:
    if name not in ours:
        return None
    type_, only = ours[name]
    return {"type": type_, "only": only, "enabled": "A", "function": "refuse_change"}


def _query(text: str, ledger: str, columns: tuple[str, ...]) -> Statement:
    composed = sql.SQL(text).format(ledger=sql.Literal(ledger))
    return Statement(composed.as_bytes(), (), {}, columns)


def _hash(text: str) -> str:
    return sha256(text.encode()).hexdigest()[:16]
