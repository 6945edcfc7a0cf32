"""Passwords, tokens and keys: told by their names, never written or printed, read from the environment on replay.

Which values are secrets follows from the names of their keys (``hub_token``, ``swanlab_api_key``, ``webhook_url``, at
any depth), and from addresses (``https://user:password@host``, ``?key=...``). In what is written such a value is

    <secret from $DATAFLEX_SECRET_HUB_TOKEN>

and whoever reads the file takes it from the variable of that name. What was read stays known in this process, so that
no message repeats it, whoever wrote the message.
"""

from __future__ import annotations

import itertools
import json
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

PREFIX = "DATAFLEX_SECRET_"


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_ALONE = _words(
    "secret secrets password passwords passwd passphrase pwd credential credentials webhook authorization auth bearer "
    "cookie cookies apikey apikeys apitoken authtoken accesstoken hubtoken secretkey accesskey privatekey"
)
_BEFORE_KEY = _words("api access private secret auth license account encryption ssh subscription service")
_BEFORE_TOKENS = _words("api access auth hub refresh bearer")
_NO_SECRET_TOKEN = _words(  # what the word says in a tokenizer's vocabulary, or in a count
    "eos bos pad unk mask sep cls image audio video vision special stop start end first last next previous single per "
    "by boi eoi prefix suffix new max min num think thinking placeholder target label decoder forced each class to "
    "separator fill input output"
)
_NAMES_ANOTHER = _words("env envvar variable var")  # api_key_env: the name of a variable
_PLACES = _words("file path dir folder")  # token_file: where it is
_IN_QUERY = _words("key token sig signature code pass")

_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_VARIABLE = re.compile(r"[A-Z][A-Z0-9]*(_[A-Z0-9]+)+|[A-Z]{1,24}")  # how people name them; a key looks otherwise
# A scheme is short: without a bound, a text of 100,000 letters would be looked through once for each of them.
_USER = re.compile(r"(?P<before>https?://|[A-Za-z][A-Za-z0-9+.-]{0,31}://(?=[^/\s@?#]*:))(?P<secret>[^/\s@?#]+)(?=@)")
_PLACEHOLDER = re.compile(rf"<secret from \$({PREFIX}[A-Z0-9_]+)>")
_QUERY = re.compile(rf"(?P<before>[?&;](?P<name>[A-Za-z0-9_.-]+)=)(?P<secret>{_PLACEHOLDER.pattern}|[^&;#\s]+)")
_LEAST = 6  # characters of a value that messages are searched for: a shorter one stands in half of all words

_known: set[str] = set()


def is_secret(name: str) -> bool:
    """Returns whether a key of this name holds a secret: ``hub_token`` does, ``max_new_tokens`` does not."""
    words = [word.lower() for word in _WORDS.findall(name)]
    if not words or words[-1] in _PLACES or words[-1] in _NAMES_ANOTHER:
        return False
    before = [*words[:-1], ""]  # words[i - 1] of the first is "", as of the last of one
    return any(
        word in _ALONE
        or (word in ("key", "keys") and before[i - 1] in _BEFORE_KEY)
        or (word == "tokens" and before[i - 1] in _BEFORE_TOKENS)
        or (word == "token" and i == len(words) - 1 and before[i - 1] not in _NO_SECRET_TOKEN)
        for i, word in enumerate(words)
    )


def masked(value: Any, *path: str) -> Any:
    """Returns a copy in which every secret is a placeholder.

    Args:
        value: A configuration, or a part of one.
        *path: The keys that lead to it.
    """
    return _masked(value, path, bool(path) and is_secret(path[-1]), {})


def taken_out(config: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Returns :func:`masked`, and the environment from which :func:`revealed` puts the secrets back."""
    environment: dict[str, str] = {}
    return _masked(config, (), False, environment), environment


def without_secrets(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what two runs are compared by: no key that is a secret, and the other values masked."""
    return {key: masked(value, key) for key, value in config.items() if not is_secret(key)}


def revealed(value: Any) -> tuple[Any, list[tuple[str, str]]]:
    """Returns a copy with placeholders replaced from the environment, and those that it has no value for.

    Returns:
        The copy; and (key, variable) of each secret that is to be given again.
    """
    missing: list[tuple[str, str]] = []
    return _revealed(value, (), missing), missing


def remember(value: Any) -> None:
    """Makes the secrets of a configuration known to :func:`scrubbed`."""
    _known.update(text for text in _secrets(value, (), False) if len(text) >= _LEAST)


def scrubbed(text: str) -> str:
    """Returns a message without the secrets that this process has read."""
    for secret in sorted(_known, key=len, reverse=True):
        text = text.replace(secret, "<secret>")
    return text


def _masked(value: Any, path: tuple[str, ...], secret: bool, found: dict[str, str]) -> Any:
    if isinstance(value, Mapping):
        return {
            key: _masked(item, (*path, str(key)), secret or is_secret(str(key)) or _holds_one(str(key), item), found)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [_masked(item, (*path, *([str(i)] if secret else [])), secret, found) for i, item in enumerate(value)]
    if value is None or isinstance(value, bool) or value == "" or _is_placeholder(value):
        return value
    if secret or _holds_one(path[-1] if path else "", value):
        return _put_away(str(value), path, found)
    return _masked_text(value, path, found) if isinstance(value, str) else value


def _masked_text(text: str, path: tuple[str, ...], found: dict[str, str]) -> str:
    if _json_with_secrets(text):
        return _put_away(text, path, found)

    def hidden(match: re.Match[str]) -> str:
        name = match.groupdict().get("name")
        if _is_placeholder(match["secret"]) or (name is not None and not _is_secret_query(name)):
            return match[0]
        return match["before"] + _put_away(match["secret"], path, found)

    return _QUERY.sub(hidden, _USER.sub(hidden, text))


def _put_away(secret: str, path: tuple[str, ...], found: dict[str, str]) -> str:
    """Returns a placeholder with a variable that no other secret has."""
    name = PREFIX + re.sub("[^A-Z0-9]+", "_", "_".join(path).upper()).strip("_")
    numbered = (name if i == 1 else f"{name}_{i}" for i in itertools.count(1))
    variable = next(each for each in numbered if found.get(each, secret) == secret)
    found[variable] = secret
    return f"<secret from ${variable}>"


def _holds_one(name: str, value: Any) -> bool:
    """Whether a key that is meant to name an environment variable holds what looks like the secret itself."""
    words = [word.lower() for word in _WORDS.findall(name)]
    if not isinstance(value, str) or len(words) < 2 or words[-1] not in _NAMES_ANOTHER:
        return False
    return is_secret("_".join(words[:-1])) and value not in os.environ and not _VARIABLE.fullmatch(value)


def _is_secret_query(name: str) -> bool:
    return is_secret(name) or name.lower() in _IN_QUERY


def _json_with_secrets(text: str) -> bool:
    """Whether a text is a mapping in JSON, as command lines give them, that has a secret in it."""
    if not text.lstrip().startswith("{"):
        return False
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return isinstance(content, dict) and masked(content) != content


def _is_placeholder(value: Any) -> bool:
    return isinstance(value, str) and _PLACEHOLDER.fullmatch(value) is not None


def _revealed(value: Any, path: tuple[str, ...], missing: list[tuple[str, str]]) -> Any:
    if isinstance(value, Mapping):
        return {key: _revealed(item, (*path, str(key)), missing) for key, item in value.items()}
    if isinstance(value, list):
        return [_revealed(item, path, missing) for item in value]
    if not isinstance(value, str):
        return value

    def given(match: re.Match[str]) -> str:
        found = os.environ.get(match[1])
        if not found:
            missing.append((".".join(path), match[1]))
            return match[0]
        return found

    return _PLACEHOLDER.sub(given, value)


def _secrets(value: Any, path: tuple[str, ...], secret: bool) -> Iterator[str]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _secrets(item, (*path, str(key)), secret or is_secret(str(key)) or _holds_one(str(key), item))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _secrets(item, path, secret)
    elif value is not None and not isinstance(value, bool) and not _is_placeholder(value):
        if secret:
            yield str(value)
        elif isinstance(value, str):
            yield from _in_text(value, path)


def _in_text(text: str, path: tuple[str, ...]) -> Iterator[str]:
    if _json_with_secrets(text):
        yield text
        yield from _secrets(json.loads(text), path, False)
    for match in [*_USER.finditer(text), *_QUERY.finditer(text)]:
        name = match.groupdict().get("name")
        if name is None or _is_secret_query(name):
            yield match["secret"]
            yield from match["secret"].split(":", 1)[1:]
