"""`pagebox keys init | add | list | revoke | rotate`: the file of API keys."""

from __future__ import annotations

import argparse
import getpass
import json
import os
import re
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import msgspec

from appliance.config.errors import ConfigError
from appliance.keys.audit import AuditLog
from appliance.keys.editor import KeyEditor
from appliance.keys.errors import KeysError
from appliance.keys.pepper import pepper_place
from appliance.keys.record import KeyRecord

DEFAULT_FILE = "/etc/pagebox/keys.yaml"
FILE_VARIABLE, PEPPER_VARIABLE, AUDIT_VARIABLE = (
    "PAGEBOX_API_KEYS_FILE",
    "PAGEBOX_API_KEYS_PEPPER",
    "PAGEBOX_AUDIT_LOG",
)

_DURATION = re.compile(r"(\d+)([smhdw])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    _verb(verbs, "init", _init, "an empty file and a pepper, where there are none")
    add = _verb(verbs, "add", _add, "a new key; it is shown this once")
    add.add_argument("name", metavar="NAME", help="whose it is, for people")
    add.add_argument("--rpm", type=int, metavar="N", help="requests a minute (default: no limit)")
    add.add_argument("--tpm", type=int, metavar="N", help="tokens a minute, prompt and reply (default: no limit)")
    add.add_argument("--concurrency", type=int, metavar="N", help="requests at a time (default: no limit)")
    add.add_argument("--priority", type=int, metavar="N", help="lower goes first (default: 0)")
    add.add_argument("--models", nargs="+", metavar="MODEL", help="names that it may ask for (default: all)")
    add.add_argument("--cache-group", metavar="GROUP", help="share cached prefixes with the keys of this group")
    add.add_argument(
        "--expires", type=_when, metavar="WHEN", help="a time from now (90d), or a date or time (ISO 8601)"
    )
    _verb(verbs, "list", _list, "all keys with their limits")
    revoke = _verb(verbs, "revoke", _revoke, "refuse a key from now on")
    rotate = _verb(verbs, "rotate", _rotate, "a new secret under the same id; it is shown this once")
    for verb in (revoke, rotate):
        verb.add_argument("key", metavar="KEY", help="id, or name if only one key has it")
    rotate.add_argument(
        "--grace",
        type=_duration,
        default=timedelta(days=1),
        metavar="TIME",
        help="how long the old secret stays valid: 30m, 24h, 0s (default: 1d)",
    )


def run(options: argparse.Namespace) -> int:
    try:
        cast(Callable[[argparse.Namespace], None], options.verb)(options)
    except KeysError as error:
        print(f"pagebox keys: {error}", file=sys.stderr)
        return 1
    return 0


def _verb(verbs: Any, name: str, work: Callable[[argparse.Namespace], None], text: str) -> argparse.ArgumentParser:
    parser = cast(
        argparse.ArgumentParser, verbs.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    )
    parser.add_argument(
        "--file", metavar="FILE", help=f"default: the environment's {FILE_VARIABLE}, else {DEFAULT_FILE}"
    )
    if name in ("init", "add", "rotate"):
        parser.add_argument(
            "--pepper",
            metavar="FILE",
            help=f"default: the environment's {PEPPER_VARIABLE}, else FILE with the suffix .pepper; made if missing",
        )
    if name not in ("init", "list"):
        parser.add_argument(
            "--audit-log", metavar="FILE", help=f"also note it there (default: the environment's {AUDIT_VARIABLE})"
        )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(verb=work)
    return parser


# ---- the verbs -------------------------------------------------------------------------------------------------------


def _init(options: argparse.Namespace) -> None:
    made = _editor(options).create()
    if options.json:
        print(json.dumps({"created": made}))
    else:
        print("The file of keys is ready." if made else "The file of keys was there already.")


def _add(options: argparse.Namespace) -> None:
    given = {
        "rpm": options.rpm,
        "tpm": options.tpm,
        "concurrency": options.concurrency,
        "priority": options.priority,
        "models": options.models,
        "cache_group": options.cache_group,
        "expires": options.expires,
    }
    fields = {name: value for name, value in given.items() if value is not None}
    record, key = _editor(options).add(options.name, _now(), **fields)
    _note(options, "key_added", record)
    _show_new(options, record, key, f"The key {record.id} of {record.name}. It is shown this once:")


def _list(options: argparse.Namespace) -> None:
    records = _editor(options).records()
    now = _now()
    print(json.dumps([_plain(record, now) for record in records], indent=2) if options.json else _table(records, now))


def _revoke(options: argparse.Namespace) -> None:
    record = _editor(options).revoke(options.key, _now())
    _note(options, "key_revoked", record)
    if options.json:
        print(json.dumps(_plain(record, _now()), indent=2))
    else:
        print(f"The key {record.id} of {record.name} is revoked.")


def _rotate(options: argparse.Namespace) -> None:
    record, key = _editor(options).rotate(options.key, _now(), options.grace)
    _note(options, "key_rotated", record)
    old = (
        "The old one is no longer valid"
        if record.previous is None
        else f"The old one is valid until {_time(record.previous.until)}"
    )
    _show_new(options, record, key, f"The new secret of {record.id}, {record.name}. It is shown this once. {old}.")


def _show_new(options: argparse.Namespace, record: KeyRecord, key: str, sentence: str) -> None:
    """The key alone goes to stdout, so that a script can take it."""
    if options.json:
        print(json.dumps({**_plain(record, _now()), "key": key}, indent=2))
        return
    print(sentence, file=sys.stderr)
    print(key)


# ---- files -----------------------------------------------------------------------------------------------------------


def _editor(options: argparse.Namespace) -> KeyEditor:
    file = options.file or os.environ.get(FILE_VARIABLE) or DEFAULT_FILE
    pepper = getattr(options, "pepper", None) or os.environ.get(PEPPER_VARIABLE)
    for place in (file, pepper or ""):
        if "://" in place:
            raise ConfigError(
                f"{place} cannot be changed from here: change a file with --file, then put its text there, as "
                "docs/api-keys.md shows."
            )
    return KeyEditor(Path(file), Path(pepper_place(pepper, file, os.environ)))


def _note(options: argparse.Namespace, event: str, record: KeyRecord) -> None:
    place = options.audit_log or os.environ.get(AUDIT_VARIABLE)
    if not place:
        return
    log = AuditLog(Path(place))
    log.write(event, key=record.id, name=record.name, by=_person())
    log.close()


def _person() -> str:
    """Who runs this, before sudo."""
    name = os.environ.get("SUDO_USER")
    try:
        return name or getpass.getuser()
    except (KeyError, OSError):  # a user id without a name
        return str(os.getuid())


# ---- words -----------------------------------------------------------------------------------------------------------


def _duration(text: str) -> timedelta:
    match = _DURATION.fullmatch(text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no time such as 30m, 24h or 90d")
    try:
        return timedelta(**{_UNITS[match[2]]: int(match[1])})
    except OverflowError:
        raise argparse.ArgumentTypeError(f"{text} is too long") from None


def _when(text: str) -> datetime:
    try:
        if _DURATION.fullmatch(text):
            return (_now() + _duration(text)).replace(microsecond=0)
        found = datetime.fromisoformat(text)
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(f"{text!r} is neither a time from now (90d) nor a date (2030-01-31)") from None
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).astimezone(UTC)


def _now() -> datetime:
    return datetime.now(UTC)


def _time(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _plain(record: KeyRecord, now: datetime) -> dict[str, Any]:
    """Everything but the hashes."""
    fields = cast(dict[str, Any], msgspec.to_builtins(record))
    del fields["hash"]
    if record.previous is not None:
        fields["previous"] = {"until": _time(record.previous.until)}
    return {**fields, "state": record.state(now)}


def _table(records: tuple[KeyRecord, ...], now: datetime) -> str:
    head = ("ID", "NAME", "STATE", "RPM", "TPM", "AT A TIME", "PRIORITY", "EXPIRES", "MODELS")
    rows = [head, *(_row(record, now) for record in records)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    return "\n".join(
        "  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _row(record: KeyRecord, now: datetime) -> tuple[str, ...]:
    limits = ("-" if limit is None else str(limit) for limit in (record.rpm, record.tpm, record.concurrency))
    expires = "-" if record.expires is None else _time(record.expires)
    models = ", ".join(record.models) or "all"
    return (record.id, record.name, record.state(now), *limits, str(record.priority), expires, models)
