"""Asking a model behind an OpenAI-compatible HTTP endpoint, patiently and without letting the key out.

The key is read from the environment when a request is made. It goes into one header and nowhere else: no attribute, no
message and no log holds it, nothing that the server sends is repeated (it might echo the key), and a redirect, which
would carry the header to another host, is not followed.
"""

from __future__ import annotations

import http.client
import ipaddress
import json
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urlsplit

from dataflex.core.errors import ComponentError, Problem

T = TypeVar("T")

_RETRIED = frozenset({408, 409, 425, 429})  # and every 5xx
_USELESS = frozenset({400, 413, 422})  # this one request cannot be served; another one may
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 60.0  # seconds; the pause doubles from the one to the other
_MOST_BYTES = 2**20  # of a response; a judge answers in a few hundred
_PATH = "/chat/completions"


class NoAnswerError(Exception):
    """A question has no answer; the text says why, in words of our own."""


@dataclass(frozen=True)
class ChatEndpoint:
    """A model behind an endpoint.

    Attributes:
        url: The base address, such as ``https://host/v1``, or the full one that ends in ``/chat/completions``.
        model: The model's name there.
        key_variable: Name of the environment variable that holds the key; None where none is needed.
        timeout: Seconds that connecting, and each wait for data, may take.
        attempts: Most requests for one question.
        pause: Waits a number of seconds; tests put something faster here.
    """

    url: str
    model: str
    key_variable: str | None = None
    timeout: float = 60.0
    attempts: int = 5
    pause: Callable[[float], None] = time.sleep

    def ask(self, instruction: str, question: str, read: Callable[[str], T | None]) -> T:
        """Returns what ``read`` makes of the model's answer.

        A busy or failing server, a timeout, a response that is no chat completion, and an answer of which ``read``
        makes nothing, are tried again.

        Args:
            instruction: The system message.
            question: The user's message.
            read: Reads an answer; None where it makes no sense of it.

        Raises:
            NoAnswerError: No attempt gave an answer.
            ComponentError: The endpoint refuses every request: the address, the model or the key is wrong.
        """
        messages = [{"role": "system", "content": instruction}, {"role": "user", "content": question}]
        body = json.dumps({"model": self.model, "messages": messages, "temperature": 0}).encode()
        why, pause = "", _FIRST_PAUSE
        for attempt in range(self.attempts):
            if attempt:
                self.pause(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
            try:
                found = read(_content(self._post(body)))
            except urllib.error.HTTPError as error:
                with error:  # it holds the connection
                    pause = max(pause, _wished_pause(error))
                    why = self._explained(error.code)
            except (OSError, http.client.HTTPException) as error:
                reason = error.reason if isinstance(error, urllib.error.URLError) else error
                why = "timeout" if isinstance(reason, TimeoutError) else f"no connection ({type(reason).__name__})"
            except ValueError:
                why = "a response that is no chat completion"
            else:
                if found is not None:
                    return found
                why = "an answer that holds no number in range"
        raise NoAnswerError(why)

    def _post(self, body: bytes) -> bytes:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self.key_variable is not None:
            headers["Authorization"] = f"Bearer {os.environ.get(self.key_variable, '').strip()}"
        url = self.url.rstrip("/")
        request = urllib.request.Request(url if url.endswith(_PATH) else url + _PATH, body, headers)
        with urllib.request.build_opener(_NoRedirect).open(request, timeout=self.timeout) as response:
            return bytes(response.read(_MOST_BYTES))

    def _explained(self, code: int) -> str:
        """Returns what an HTTP status means where another request may succeed.

        Raises:
            NoAnswerError: This question cannot be answered.
            ComponentError: None can.
        """
        if code in _RETRIED or code >= 500:
            return f"HTTP status {code}"
        if code in _USELESS:
            raise NoAnswerError(f"HTTP status {code}") from None
        raise ComponentError(
            f"the endpoint at {urlsplit(self.url).hostname} answers with HTTP status {code} -> check endpoint, "
            "endpoint_model, and the key in the environment variable that api_key_env names; redirects are not followed"
        ) from None


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Makes an error of a redirect."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


def _content(response: bytes) -> str:
    """Returns the text of a chat completion.

    Raises:
        ValueError: It is none.
    """
    try:
        content = json.loads(response)["choices"][0]["message"]["content"]
    except (KeyError, IndexError, TypeError) as error:
        raise ValueError("no chat completion") from error
    if not isinstance(content, str):
        raise ValueError("no text")
    return content


def _wished_pause(error: urllib.error.HTTPError) -> float:
    wished = error.headers.get("Retry-After", "") if error.headers else ""
    return min(float(wished), _LONGEST_PAUSE) if re.fullmatch(r"\d{1,9}(\.\d+)?", wished) else 0.0


def valid_url(key: str, found: Any) -> Problem | None:
    """Returns a problem unless ``found`` is an http(s) address that carries no password. It is not repeated."""
    try:
        parts = urlsplit(found) if isinstance(found, str) else None
        if parts is not None and parts.scheme in ("http", "https") and parts.hostname and parts.port != 0:
            if parts.username is None and parts.password is None and not parts.query:
                return None
            return Problem(key, "it carries a user, a password or a query", "name a variable in api_key_env for a key")
    except ValueError:  # brackets that do not close, a port that is no number
        pass
    return Problem(key, "it is no address that begins with http:// or https:// and names a host")


def readable_on_the_way(url: str) -> str | None:
    """Returns the host where a request would go over plain http to another machine, else None."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if parts.scheme != "http" or host == "localhost" or host.endswith(".localhost"):
        return None
    try:
        return None if ipaddress.ip_address(host).is_loopback else host
    except ValueError:  # a name
        return host


def usable_key(key: str, found: Any) -> Problem | None:
    """Returns a problem unless ``found`` is None or names a variable that holds a key. Its value is not repeated.

    Nor is the name: who writes the key itself in its place should not read it in a log.
    """
    if found is None:
        return None
    if not isinstance(found, str) or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", found):
        return Problem(key, "it is not the name of an environment variable", "put the key in one and its name here")
    value = os.environ.get(found, "").strip()
    if not value:
        return Problem(key, "the environment variable of that name is not set or empty", "put the key in it")
    if not (value.isascii() and value.isprintable() and " " not in value):
        return Problem(key, "the environment variable of that name holds characters that no key has")
    return None
