"""Whether the rows of a small data file are laid out as dataset_info.json says.

Rows are counted from 1. A column that some rows lack is null there, as in training; one that all rows lack is an error.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dataflex.config.checks.data_files import Table, shown
from dataflex.config.checks.dataset_entry import INFO, Entry
from dataflex.core.errors import ConfigError, listed

_TYPES = {str: "a text", int: "a number", float: "a number", bool: "true or false", list: "a list", dict: "an object"}
MEDIA = ("images", "videos", "audios")
"""What a row may have beside its text."""
_ALPACA = ("prompt", "query", "history", "system", "tools", "kto_tag", *MEDIA)
_CHAT = ("messages", "kto_tag", *MEDIA)  # a system column is read only where no system message comes first


def require_format(found: Entry, table: Table, rows: int | None) -> None:
    """Refuses a file whose rows LLaMA-Factory could not read.

    Args:
        found: The dataset's definition.
        table: What the file holds.
        rows: How many of the first rows are certain to be read; None for all.

    Raises:
        ConfigError: It names the file, the column, and where it can, the row.
    """
    if table.columns is None or table.count == 0:
        return
    for use in _needed(found):
        _require_column(found, table, use)
    for number, row in enumerate(table.rows[:rows], start=1):
        what = _wrong_value(found, row)
        if what:
            raise ConfigError(f"{table.path}, row {number}, {what}")
    _require_one_type(table, rows)
    if found.formatting != "alpaca":
        _require_tags(found, table)


def has_answers(found: Entry, table: Table) -> bool:
    """Returns whether any row may have an answer to be trained on; True where that is not known."""
    if found.formatting not in ("alpaca", "sharegpt", "openai") or not table.rows:
        return True
    if found.formatting != "alpaca":
        return any(_turns(found, row.get(str(found.columns["messages"]))) for row in table.rows)
    column = found.columns["response"]
    return bool(column) and any(isinstance(row.get(str(column)), str) for row in table.rows)


def no_answers(found: Entry) -> str:
    """Returns why no row has an answer to be trained on, and the way out."""
    if found.formatting != "alpaca":
        return (
            f"no row of the column '{found.columns['messages']}' has turns that alternate, the first of them a "
            f"question and the last an answer, and others are dropped -> repair the order of its messages, or name "
            f"their roles in 'tags' in {INFO}"
        )
    column = found.columns["response"]
    there = f"no row has a text in the column '{column}'" if column else "'columns' names no response"
    return (
        f"{there}, and stage: sft drops a row without an answer -> name the column of the answers in {INFO}, or leave "
        "the dataset out"
    )


def require_rows_of_stage(found: Entry, tables: Sequence[Table], stage: str) -> None:
    """Refuses rows that a stage would drop one and all: pairs that are none, answers without a tag, or with one.

    LLaMA-Factory drops such a row with a warning, and fails where none is left.

    Args:
        found: The dataset's definition.
        tables: What its files hold.
        stage: LLaMA-Factory's ``stage``.

    Raises:
        ConfigError: No row is left to train on.
    """
    rows = [row for table in tables for row in table.rows]
    if found.formatting in ("alpaca", "sharegpt", "openai") and rows:
        why = _no_pairs(found, rows) if stage in ("rm", "dpo") else _tags_amiss(found, rows, stage)
        if why:
            raise ConfigError(f"'{found.name}' ({found.file_name}) gives no rows to train on: {why}")


def _no_pairs(found: Entry, rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns why no row is a pair of answers; empty where one is, or where the definition says of none."""
    wanted, what = (str, "a text") if found.formatting == "alpaca" else (dict, "a message")
    columns = [str(found.columns[use]) for use in ("chosen", "rejected") if found.columns[use]]
    if not found.ranking or not columns:
        return ""
    if any(all(isinstance(row.get(column), wanted) for column in columns) for row in rows):
        return ""
    column = next(column for column in columns if not isinstance(rows[0].get(column), wanted))
    return (
        f"no row has {what} in both {' and '.join(map(repr, columns))} (row 1, column '{column}': found "
        f"{shown(rows[0].get(column))}), and a row without is dropped -> write {what} there, or name the columns of "
        f"the answers in {INFO}"
    )


def _tags_amiss(found: Entry, rows: Sequence[Mapping[str, Any]], stage: str) -> str:
    """Returns why kto drops each row for want of a tag, or sft for having one; empty where a row is left."""
    column = found.columns["kto_tag"]
    tagged = [column is not None and isinstance(row.get(column), bool) for row in rows]
    if stage == "kto" and not any(tagged):
        there = f"no row has true or false in the column '{column}'" if column else "'columns' names no kto_tag"
        return (
            f"{there}, and stage: kto drops a row without a tag -> name the column that says true of wanted answers "
            f"and false of others in {INFO}, or name another dataset"
        )
    if stage == "sft" and all(tagged):
        return (
            f"each has a tag in the column '{column}', and stage: sft drops a row with one -> take kto_tag out of its "
            f"columns in {INFO}, or train on it with stage: kto"
        )
    return ""


def _require_one_type(table: Table, rows: int | None) -> None:
    """Refuses a column that is a text in one row and a number, a list or an object in another: one type is read."""
    types: dict[str, tuple[str, int]] = {}
    for number, row in enumerate(table.rows[:rows], start=1):
        for column, value in row.items():
            kind = _TYPES.get(type(value))
            if kind is None:  # null goes with each
                continue
            first, where = types.setdefault(column, (kind, number))
            if kind != first and {kind, first} != {"a number", "true or false"}:
                raise ConfigError(
                    f"{table.path}, row {number}, column '{column}': found {shown(value)}, {kind}, where row {where} "
                    f"has {first}, and a column has one type -> write all of them as texts"
                )


def _needed(found: Entry) -> Iterator[str]:
    if found.formatting == "alpaca":
        uses: tuple[str, ...] = (*_ALPACA, "chosen", "rejected") if found.ranking else (*_ALPACA, "response")
    elif found.formatting == "sharegpt":
        uses = (*_CHAT, "tools", *(("chosen", "rejected") if found.ranking else ()))
    elif found.formatting == "openai":
        uses = (*_CHAT, *(("chosen", "rejected") if found.ranking else ()))
    else:
        return  # of a plugin
    for use in uses:
        if found.columns[use]:
            yield use
        elif use in ("messages", "chosen", "rejected"):  # read without a look at whether they are declared
            raise ConfigError(f"'{found.name}' in {INFO}: columns names no {use} -> add it")


def _require_column(found: Entry, table: Table, use: str) -> None:
    column = found.columns[use]
    assert table.columns is not None
    if column in table.columns:
        return
    if table.one_object:
        raise ConfigError(
            f"{table.path} holds one object ({listed(map(str, table.columns))}) in place of a list of rows, and it has "
            f"no '{column}' -> write the list itself"
        )
    by = f"formatting: {found.formatting}" if found.default_columns else f"columns: {use}: '{column}'"
    chat = table.columns & {"conversations", "messages"}
    hint = f"; for {', '.join(chat)}, set formatting: sharegpt" if chat and found.formatting == "alpaca" else ""
    raise ConfigError(
        f"{table.path}: no row has the column '{column}', which '{found.name}' in {INFO} reads as '{use}' ({by}); "
        f"there are: {listed(map(str, table.columns))} -> name the columns of the file in 'columns'{hint}"
    )


def _wrong_value(found: Entry, row: Mapping[str, Any]) -> str:
    """Returns what is wrong with a row, from its column on; empty where nothing is."""
    if found.formatting == "alpaca":
        return _wrong_alpaca(found, row)
    if found.formatting not in ("sharegpt", "openai"):
        return ""
    column = found.columns["messages"]
    messages = row.get(str(column))
    if not isinstance(messages, list):
        return f"column '{column}': found {shown(messages)} -> a list of messages is read there"
    for message in messages:
        if not isinstance(message, dict):
            return f"column '{column}': found {shown(message)} -> a message is an object"
    what = _unknown_role(found, messages) if found.formatting == "openai" else ""
    return what or _no_text(found, messages)


def _no_text(found: Entry, messages: list[Any]) -> str:
    """Returns what is wrong with the content of a message that will be tokenised; a system message may have none."""
    content = str(found.tags["content_tag"])
    for message in _turns(found, messages):
        value = message.get(content)
        if not isinstance(value, str) and not message.get("tool_calls"):
            column = found.columns["messages"]
            return f"column '{column}': found {shown(value)} as '{content}' of a message -> a text is read there"
    return ""


def _turns(found: Entry, messages: Any) -> list[Mapping[str, Any]]:
    """Returns the messages after the system's; none where their turns are out of order, as such a row is dropped."""
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        return []
    tags, roles = found.tags, [message.get(found.tags["role_tag"]) for message in messages]
    first = 1 if tags["system_tag"] and roles and roles[0] == tags["system_tag"] else 0
    asks = (tags["user_tag"], tags["observation_tag"])
    answers = (tags["assistant_tag"], tags["function_tag"])
    merges = found.formatting == "openai"  # results of tools that follow each other are one turn
    kept = [
        role
        for i, role in enumerate(roles[first:], first)
        if not (merges and role == tags["observation_tag"] and i > first and roles[i - 1] == role)
    ]
    in_order = all(role in (answers if i % 2 else asks) for i, role in enumerate(kept))
    return messages[first:] if kept and in_order and len(kept) % 2 == int(found.ranking) else []


def _wrong_alpaca(found: Entry, row: Mapping[str, Any]) -> str:
    for use in ("prompt", "query"):
        column = found.columns[use]
        value = row.get(column) if column else None
        if value and not isinstance(value, str):
            return f"column '{column}': found {shown(value)} -> a text is read there"
    column = found.columns["history"]
    turns = row.get(column) if column else None
    for turn in turns if isinstance(turns, list) else []:
        if not isinstance(turn, str | dict) and (not isinstance(turn, list) or len(turn) != 2):
            return f"column '{column}': found {shown(turn)} -> a turn is a pair [prompt, answer]"
    return ""


def _unknown_role(found: Entry, messages: list[Any]) -> str:
    roles = {tag: found.tags[tag] for tag in found.tags if tag not in ("role_tag", "content_tag")}
    for message in messages:
        role = message.get(found.tags["role_tag"])
        if role not in roles.values() and not message.get("tool_calls"):
            known = listed(str(value) for value in roles.values() if value)
            column = found.columns["messages"]
            return f"column '{column}': found the role {shown(role)}; known: {known} -> name it in 'tags'"
    return ""


def _require_tags(found: Entry, table: Table) -> None:
    """Refuses messages none of which has the declared role or content."""
    column = str(found.columns["messages"])
    keys: set[str] = set()
    first = 0
    for number, row in enumerate(table.rows, start=1):
        for message in row.get(column) or []:
            first = first or number
            keys.update(message if isinstance(message, dict) else ())
    for tag in ("role_tag", "content_tag"):
        if first and found.tags[tag] not in keys:
            raise ConfigError(
                f"{table.path}, row {first}, column '{column}': no message of the file has '{found.tags[tag]}' "
                f"({tag}); there are: {listed(keys)} -> name the keys of its messages in 'tags' of '{found.name}' in "
                f"{INFO}"
            )
