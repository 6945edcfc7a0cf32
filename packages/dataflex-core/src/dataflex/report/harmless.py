"""Text of rows as data: shown as it is, never run; and nothing secret leaves this process in a page.

What a row holds is put into a JSON object inside of the page, in which nothing can end the script element that it
stands in, and set with ``textContent``. Control characters are shown as pictures of themselves, and marks that turn the
direction of the text around them as their numbers, so that no row can rearrange the page.
"""

from __future__ import annotations

import json
import os
import re
from typing import Any

from dataflex.utils.secret_values import is_secret, masked, remember, scrubbed

_ESCAPES = {
    "<": "\\u003c", ">": "\\u003e", "&": "\\u0026", chr(0x2028): "\\u2028", chr(0x2029): "\\u2029",
}  # fmt: skip
_ESCAPED = re.compile("[<>&\u2028\u2029]")
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ufffe\uffff\ud800-\udfff]")
_PICTURES = 0x2400  # U+2400 is the picture of NUL, and so on up to U+001F


def harmless(text: str, most: int) -> tuple[str, bool]:
    """Returns a text with at most ``most`` characters, control characters made visible, and whether it was cut."""
    cut = len(text) > most
    return _CONTROL.sub(_picture, text[:most].replace("\r\n", "\n").replace("\r", "\n")), cut


def _picture(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code < 0x20:
        return chr(_PICTURES + code)
    return "\u2421" if code == 0x7F else "\ufffd" if 0xD800 <= code <= 0xDFFF else f"[U+{code:04X}]"


def in_script(value: Any) -> str:
    """Returns JSON that can stand inside of a script element: nothing in it ends the element or begins a comment."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return _ESCAPED.sub(lambda match: _ESCAPES[match[0]], text)


def know_secrets() -> None:
    """Makes the secrets of the environment known, so that :func:`without_secrets` finds them in whatever text.

    A value that is the path of something, as of ``PWD``, is none: folders stand in every page.
    """
    said = {name: value for name, value in os.environ.items() if is_secret(name) or "://" in value}
    remember({name: value for name, value in said.items() if not os.path.isabs(value) or not os.path.exists(value)})


def without_secrets(value: Any) -> Any:
    """Returns a copy of the page's data in which no text holds a secret that this process knows, keys included."""
    if isinstance(value, str):
        return scrubbed(_address(value)) if "://" in value else scrubbed(value)
    if isinstance(value, dict):
        return {scrubbed(str(key)): without_secrets(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_secrets(item) for item in value]
    return value


def _address(text: str) -> str:
    """Returns a text whose addresses carry no password and no key."""
    return str(masked(text))
