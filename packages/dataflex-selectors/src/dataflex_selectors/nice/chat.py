"""Asks a model at an OpenAI-compatible HTTP endpoint, with retries, and keeps the key secret.

The key is read from the environment when a request is made, and goes into one header only. No attribute, message or log
holds it. Nothing that the server sends is repeated, as it might echo the key. A redirect is not followed, as it would
send the header to another host.

A server may send a byte at a time, or ``100 Continue`` for ever. So a request has one deadline, from the look-up of the
name to the last byte. The request runs in an event loop of its own, where it can be cancelled at any point.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import logging
import os
import re
import ssl
import threading
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx
from dataflex.core.errors import ComponentError, Problem

T = TypeVar("T")

_RETRIED = frozenset({408, 409, 425, 429})  # and every 5xx
_USELESS = frozenset({400, 413, 422})  # this one request cannot be served; another one may
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 60.0  # seconds; the pause doubles from the one to the other
_MOST_BYTES = 2**20  # of a response; a judge answers in a few hundred
_DEEPEST = 64  # lists and objects inside of each other; a chat completion has four
_PATH = "/chat/completions"
_LOOKS_EVERY = 0.2  # seconds; whether an answer is still wanted
_NOT_WANTED = "it is not wanted any more"


class NoAnswerError(Exception):
    """A question has no answer; the text says why, in words of our own."""


@dataclass(frozen=True)
class _Response:
    """What a server said. ``wish`` is its ``Retry-After``."""

    status: int
    wish: str
    body: bytes


@dataclass(frozen=True)
class ChatEndpoint:
    """A model behind an endpoint.

    Attributes:
        url: The base address, such as ``https://host/v1``, or the full one that ends in ``/chat/completions``.
        model: The model's name there.
        key_variable: Name of the environment variable that holds the key; None where none is needed.
        timeout: Seconds that a request may take, from connecting to the last byte of the answer.
        attempts: Most requests for one question.
        pause: Waits a number of seconds in place of the clock: for tests.
    """

    url: str
    model: str
    key_variable: str | None = None
    timeout: float = 60.0
    attempts: int = 5
    pause: Callable[[float], None] | None = None

    def ask(
        self,
        instruction: str,
        question: str,
        read: Callable[[str], T | None],
        over: threading.Event | None = None,
    ) -> T:
        """Returns what ``read`` makes of the model's answer.

        A busy or failing server, a timeout, a response that is no chat completion, and an answer of which ``read``
        makes nothing, are tried again.

        Args:
            instruction: The system message.
            question: The user's message.
            read: Reads an answer; None where it makes no sense of it.
            over: Set by another thread where no answer is wanted any more: pauses and requests then end.

        Raises:
            NoAnswerError: No attempt gave an answer, or none is wanted any more.
            ComponentError: The endpoint refuses every request: the address, the model or the key is wrong.
        """
        messages = [{"role": "system", "content": instruction}, {"role": "user", "content": question}]
        body = json.dumps({"model": self.model, "messages": messages, "temperature": 0}).encode()
        why, pause, over = "", _FIRST_PAUSE, over or threading.Event()
        for attempt in range(self.attempts):
            if attempt:
                (self.pause or over.wait)(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
            if over.is_set():
                raise NoAnswerError(_NOT_WANTED)
            response = self._post(body, over)
            if isinstance(response, str):
                why = response
                continue
            if not 200 <= response.status < 300:
                pause = max(pause, _wished_pause(response.wish))
                why = self._explained(response.status)
                continue
            content = _content(response.body)
            if content is None:
                why = "a response that is no chat completion"
                continue
            found = read(content)
            if found is not None:
                return found
            why = "an answer that holds no number in range"
        raise NoAnswerError(why)

    def _post(self, body: bytes, over: threading.Event) -> _Response | str:
        """Returns the response, or why there is none.

        What httpx raises holds the request and its header with the key. So it is put into words here, and none of it is
        raised further or hangs on another error as its cause.
        """
        loop, unlogged = asyncio.new_event_loop(), _ours.set(True)
        try:
            return loop.run_until_complete(self._within_time(body, over))
        finally:
            _ours.reset(unlogged)
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()  # does not wait for a name that is still being looked up

    async def _within_time(self, body: bytes, over: threading.Event) -> _Response | str:
        request = asyncio.create_task(self._request(body))
        try:
            async with asyncio.timeout(self.timeout):
                while not request.done():
                    await asyncio.wait({request}, timeout=_LOOKS_EVERY)
                    if over.is_set():
                        return _NOT_WANTED
                return request.result()
        except TimeoutError:
            return "timeout"
        except (httpx.TransportError, OSError) as error:
            return f"no connection ({_root_of(error)})"
        finally:
            request.cancel()
            await asyncio.wait({request})
            if not request.cancelled():
                request.exception()  # looked at, or asyncio would log it

    async def _request(self, body: bytes) -> _Response | str:
        headers = {"Content-Type": "application/json", "Accept": "application/json", "Accept-Encoding": "identity"}
        if self.key_variable is not None:
            headers["Authorization"] = f"Bearer {os.environ.get(self.key_variable, '').strip()}"
        url = self.url.rstrip("/")
        url = url if url.endswith(_PATH) else url + _PATH
        try:
            # No timeouts of its own: they are for each read, and start anew with every byte.
            unopened = httpx.AsyncClient(verify=_certificates(), timeout=None, follow_redirects=False)
        except (ValueError, ImportError, httpx.InvalidURL):  # of HTTPS_PROXY, ALL_PROXY and so on
            return "the proxy that the environment names cannot be used"
        found = bytearray()
        async with unopened as client, client.stream("POST", url, content=body, headers=headers) as response:
            async for part in response.aiter_raw():  # raw: what is compressed could be a thousand times as long
                found += part
                if len(found) > _MOST_BYTES:
                    break
            return _Response(response.status_code, response.headers.get("Retry-After", ""), bytes(found[:_MOST_BYTES]))

    def _explained(self, code: int) -> str:
        """Returns what an HTTP status means where another request may succeed.

        Raises:
            NoAnswerError: This question cannot be answered.
            ComponentError: None can.
        """
        if code in _RETRIED or code >= 500:
            return f"HTTP status {code}"
        if code in _USELESS:
            raise NoAnswerError(f"HTTP status {code}")
        raise ComponentError(
            f"the endpoint at {urlsplit(self.url).hostname} answers with HTTP status {code} -> check endpoint, "
            "endpoint_model, and the key in the environment variable that api_key_env names; redirects are not followed"
        )


_ours: ContextVar[bool] = ContextVar("a request of ours", default=False)


class _NotOurs(logging.Filter):
    """Keeps what is logged of our requests out of the log: headers, which may echo the key, and a line for each."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not _ours.get()


_LOGGERS = ("httpx", "httpcore.connection", "httpcore.http11", "httpcore.http2", "httpcore.proxy", "httpcore.socks")
_filter = _NotOurs()
for _name in _LOGGERS:
    logging.getLogger(_name).addFilter(_filter)


@cache
def _certificates() -> ssl.SSLContext:
    """Returns the machine's own certificates, which a company may have added to. Read once: it takes a while."""
    return ssl.create_default_context()


def _root_of(error: BaseException) -> str:
    """Returns the class of what went wrong at the bottom, such as ``ConnectionRefusedError``."""
    name, below = type(error).__name__, error.__cause__ or error.__context__
    while below is not None:
        if isinstance(below, OSError) and type(below) is not OSError:
            name = type(below).__name__
        below = below.__cause__ or below.__context__
    return name


def _content(response: bytes) -> str | None:
    """Returns the text of a chat completion; None where it is none."""
    if _too_deep(response):
        return None
    try:
        content = json.loads(response)["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError):
        return None
    return content if isinstance(content, str) else None


def _too_deep(response: bytes) -> bool:
    """Returns whether lists and objects are nested deeper than any answer is: the parser would overflow its stack."""
    if response.count(b"[") + response.count(b"{") <= _DEEPEST:
        return False
    depth, quoted, escaped = 0, False, False
    for byte in response:
        if quoted:
            quoted, escaped = escaped or byte != ord('"'), not escaped and byte == ord("\\")
        elif byte == ord('"'):
            quoted = True
        elif byte in b"[{":
            depth += 1
            if depth > _DEEPEST:
                return True
        elif byte in b"]}":
            depth -= 1
    return False


def _wished_pause(wished: str) -> float:
    return min(float(wished), _LONGEST_PAUSE) if re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", wished) else 0.0


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
