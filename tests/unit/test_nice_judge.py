"""A judge behind HTTP: patient with what may pass, quick with what will not, and silent about the key."""

from __future__ import annotations

import gzip
import json
import logging
import socketserver
import threading
import time
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import numpy as np
import pytest
from dataflex.core.errors import ComponentError, StoppedError
from dataflex_selectors.nice import judge as module
from dataflex_selectors.nice.chat import ChatEndpoint, NoAnswerError, usable_key, valid_url
from dataflex_selectors.nice.judge import INSTRUCTION, Judge, read_mark
from dataflex_selectors.nice.rewards import Answer
from dataflex_selectors.nice.settings import RewardSettings

KEY = "sk-verysecret0123456789"


def completion(text):
    return json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]})


class Server:
    """An endpoint that answers request after request as it is told; the last answer is for all that follow."""

    def __init__(self, *replies):
        self.replies, self.requests, self.lock = list(replies), [], threading.Lock()
        self.release = threading.Event()

    def next(self, request):
        with self.lock:
            self.requests.append(request)
            return self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]


@contextmanager
def serving(*replies):
    """Yields a server. A reply is (status, text[, headers]), "hang", "drop", or what makes one of a request."""
    server = Server(*replies)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            request = SimpleNamespace(path=self.path, headers=dict(self.headers), body=body)
            reply = server.next(request)
            if callable(reply):
                reply = reply(request)
            if reply == "hang":
                server.release.wait(20)
                return
            if reply == "drop":
                self.connection.close()
                return
            status, text, *headers = reply
            data = text.encode()
            self.send_response(status)
            for name, value in (headers[0] if headers else {}).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def do_GET(self):  # what a redirect that is followed would do
            server.requests.append(SimpleNamespace(path=self.path, headers=dict(self.headers), body=None))
            self.send_error(404)

        def log_message(self, *args):
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    server.url = f"http://127.0.0.1:{http.server_address[1]}/v1"
    try:
        yield server
    finally:
        server.release.set()
        http.shutdown()
        http.server_close()
        thread.join()


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("JUDGE_KEY", KEY)


def endpoint(server, pauses=None, **changes):
    options = {"attempts": 4, "timeout": 5.0, "key_variable": "JUDGE_KEY"} | changes
    return ChatEndpoint(server.url, "judge-1", pause=(pauses if pauses is not None else []).append, **options)


def ask(server, pauses=None, **changes):
    return endpoint(server, pauses, **changes).ask("Mark it.", "An answer.", read_mark)


# --- one question


def test_a_question_is_a_chat_completion_with_the_key_in_its_header():
    with serving((200, completion("7"))) as server:
        assert ask(server) == 7
    (request,) = server.requests
    assert request.path == "/v1/chat/completions"
    assert request.headers["Authorization"] == f"Bearer {KEY}"
    assert request.body["model"] == "judge-1"
    assert request.body["temperature"] == 0
    assert request.body["messages"] == [
        {"role": "system", "content": "Mark it."},
        {"role": "user", "content": "An answer."},
    ]


def test_without_a_variable_no_header_is_sent():
    with serving((200, completion("7"))) as server:
        ask(server, key_variable=None)
    assert "Authorization" not in server.requests[0].headers


def test_the_full_address_is_taken_as_it_is():
    with serving((200, completion("7"))) as server:
        ChatEndpoint(f"{server.url}/chat/completions", "judge-1").ask("", "", read_mark)
    assert server.requests[0].path == "/v1/chat/completions"


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 529])
def test_a_busy_or_failing_server_is_asked_again_with_doubling_pauses(status):
    pauses = []
    with serving((status, "busy"), (status, "busy"), (status, "busy"), (200, completion("3"))) as server:
        assert ask(server, pauses) == 3
    assert pauses == [1.0, 2.0, 4.0]


def test_a_server_that_says_how_long_to_wait_is_given_that_long_up_to_a_minute():
    pauses = []
    with serving(
        (429, "", {"Retry-After": "7"}), (429, "", {"Retry-After": "9999"}), (429, "", {"Retry-After": "soon"}),
        (200, completion("3")),
    ) as server:  # fmt: skip
        assert ask(server, pauses) == 3
    assert pauses == [7.0, 60.0, 60.0]


@pytest.mark.parametrize(
    ("reply", "why"),
    [
        ((200, "<html>"), "a response that is no chat completion"),
        ((200, '{"choices": []}'), "a response that is no chat completion"),
        ((200, '{"choices": [{"message": {"content": null}}]}'), "a response that is no chat completion"),
        ((200, "[1]"), "a response that is no chat completion"),
        ((200, completion("very good")), "an answer that holds no number in range"),
        ((200, completion("11")), "an answer that holds no number in range"),
        ("drop", "no connection"),
        ((503, "busy"), "HTTP status 503"),
    ],
)
def test_a_bad_answer_is_asked_for_again_and_given_up_after_the_last_attempt(reply, why):
    with serving(reply, (200, completion("3"))) as server:
        assert ask(server) == 3
        assert len(server.requests) == 2
    with serving(reply) as server:
        with pytest.raises(NoAnswerError, match=why):
            ask(server)
        assert len(server.requests) == 4


def test_a_server_that_hangs_runs_into_the_timeout():
    with serving("hang", (200, completion("3"))) as server:
        assert ask(server, timeout=0.3) == 3
    with serving("hang") as server, pytest.raises(NoAnswerError, match="timeout"):
        ask(server, timeout=0.2, attempts=2)


def test_a_server_that_is_not_there_is_no_connection():
    with serving((200, "")) as server:
        pass
    with pytest.raises(NoAnswerError, match=r"no connection \(ConnectionRefusedError\)"):
        ask(server)


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_request_that_cannot_be_served_is_not_repeated(status):
    with serving((status, "too long"), (200, completion("3"))) as server:
        with pytest.raises(NoAnswerError, match=f"HTTP status {status}"):
            ask(server)
        assert len(server.requests) == 1


@pytest.mark.parametrize("status", [401, 403, 404, 405])
def test_a_wrong_key_model_or_address_stops_at_once(status):
    with serving((status, "no")) as server:
        with pytest.raises(
            ComponentError, match=rf"127.0.0.1 answers with HTTP status {status} -> check endpoint, endp"
        ):
            ask(server)
        assert len(server.requests) == 1


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_is_not_followed_so_that_the_key_reaches_no_other_host(status):
    with serving((200, completion("1"))) as other, serving((status, "", {"Location": other.url})) as server:
        with pytest.raises(ComponentError, match=f"HTTP status {status} .* redirects are not followed"):
            ask(server)
        assert other.requests == []


# --- servers that mean harm, or are broken


@contextmanager
def raw(*parts, pause=0.0, forever=None):
    """Yields the address of a server that writes ``parts``, then ``forever`` until the client is gone."""
    over = threading.Event()

    class Handler(socketserver.BaseRequestHandler):
        def handle(self):
            self.request.settimeout(5)
            with suppress(OSError):
                asked = b""
                while not asked.endswith(b"}"):  # all of it: what is left unread resets the connection
                    asked += self.request.recv(2**16)
                for part in parts:
                    self.request.sendall(part)
                    over.wait(pause)
                while forever is not None and not over.is_set():
                    self.request.sendall(forever)
                    over.wait(pause)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield SimpleNamespace(url=f"http://127.0.0.1:{server.server_address[1]}/v1")
        finally:
            over.set()
            server.shutdown()
            thread.join()


HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n"
NEVER_DONE = {
    "a header, byte by byte": {"parts": [HEAD[:3]], "pause": 0.02, "forever": b"X"},
    "headers for ever": {"parts": [HEAD[:17]], "pause": 0.02, "forever": b"A: b\r\n"},
    "a body, byte by byte": {"parts": [HEAD], "pause": 0.02, "forever": b" "},
    "100 Continue, slowly": {"parts": [], "pause": 0.02, "forever": b"HTTP/1.1 100 Continue\r\n\r\n"},
    "100 Continue, fast": {"parts": [], "forever": b"HTTP/1.1 100 Continue\r\n\r\n" * 500},
    "nothing": {"parts": [], "pause": 5.0, "forever": b""},
}


@pytest.mark.parametrize("how", NEVER_DONE)
def test_a_request_has_one_deadline_whatever_the_server_sends_meanwhile(how):
    given = dict(NEVER_DONE[how])
    with raw(*given.pop("parts"), **given) as server:
        begun = time.monotonic()
        with pytest.raises(NoAnswerError, match="timeout"):
            ask(server, timeout=0.4, attempts=1)
        assert time.monotonic() - begun < 2


NO_ANSWER = {
    "a body without end": {"parts": [b"HTTP/1.1 200 OK\r\n\r\n"], "forever": b"[" * 2**16},
    "headers without end": {"parts": [HEAD[:17]], "forever": b"A: " + b"b" * 2**16 + b"\r\n"},
    "a bomb": {
        "parts": [
            b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nConnection: close\r\n\r\n",
            gzip.compress(b" " * 2**27),
        ]
    },
}


@pytest.mark.parametrize("how", NO_ANSWER)
def test_a_response_is_read_up_to_a_bound(how):
    given = dict(NO_ANSWER[how])
    with raw(*given.pop("parts"), **given) as server:
        begun = time.monotonic()
        with pytest.raises(NoAnswerError, match=r"a response that is no chat completion|no connection \(Remote"):
            ask(server, timeout=10.0, attempts=1)
        assert time.monotonic() - begun < 5


SIZE = 100_000
HOSTILE_JSON = {
    "lists": "[" * SIZE,
    "objects": '{"a":' * SIZE,
    "escaped quotes": '["' + '\\"' * SIZE + "[" * SIZE,
    "a long number": "1" * SIZE,
    "a long fraction": "[1." + "1" * SIZE + "]",
    "blanks": " " * SIZE,
    "nested in a completion": '{"choices": [{"message": {"content": ' + "[" * SIZE + "]" * SIZE + "}}]}",
}


@pytest.mark.parametrize("how", HOSTILE_JSON)
def test_what_is_no_chat_completion_is_told_in_linear_time_without_running_out_of_stack(how):
    with serving((200, HOSTILE_JSON[how])) as server:
        begun = time.monotonic()
        with pytest.raises(NoAnswerError, match="a response that is no chat completion"):
            ask(server, attempts=1)
        assert time.monotonic() - begun < 2


def test_brackets_inside_of_an_answer_are_text():
    with serving((200, completion("[{" * 500 + '\\" 7'))) as server:
        assert ask(server) == 7


@pytest.mark.parametrize(
    ("text", "mark"),
    [
        (" " * SIZE, None),
        ("8" + " " * SIZE + "/10", 8),
        ("8 /" + " " * SIZE + "10", 8),
        ("/ " * SIZE, None),
        ("-" * SIZE, None),
        ("1" * SIZE, None),
        ("1." * SIZE, None),
        ("9." + "0" * SIZE, 9),
    ],
    ids=lambda value: repr(value)[:12],
)
def test_a_long_answer_is_read_in_linear_time(text, mark):
    begun = time.monotonic()
    assert read_mark(text) == mark
    assert time.monotonic() - begun < 2


def test_digits_of_other_scripts_are_no_mark():
    assert read_mark("\u0667") is None


def test_a_proxy_that_cannot_be_used_is_named_without_its_password(monkeypatch):
    monkeypatch.delenv("no_proxy")
    for variable in ("http_proxy", "all_proxy"):
        monkeypatch.setenv(variable, f"nonsense://me:{KEY}@host")
        with (
            serving((200, completion("3"))) as server,
            pytest.raises(NoAnswerError, match="the proxy that the env") as e,
        ):
            ask(server, attempts=1)
        assert KEY not in everything(e.value)
        monkeypatch.delenv(variable)


def test_requests_leave_no_line_in_the_log_and_those_of_others_keep_theirs(caplog):
    import httpx

    with serving((200, completion("3"))) as server, caplog.at_level(logging.DEBUG):
        ask(server)
        assert [r for r in caplog.records if r.name.startswith("http")] == []
        httpx.get(server.url, trust_env=False)
        assert [r for r in caplog.records if r.name.startswith("http")] != []


# --- the key


def everything(error):
    """All the text that an error and what it came from could show."""
    seen = []
    while error is not None:
        seen += [repr(error), str(error), *map(repr, vars(error).values())]
        error = error.__cause__ or error.__context__
    return " ".join(seen)


@pytest.mark.parametrize("status", [200, 302, 400, 401, 404, 429, 500])
def test_the_key_is_in_no_error_log_or_repr_even_when_the_server_echoes_it(status, caplog):
    with serving((status, f"your key {KEY}", {"X-Echo": KEY})) as server, caplog.at_level(logging.DEBUG):
        asked = endpoint(server)
        with pytest.raises((NoAnswerError, ComponentError)) as caught:
            asked.ask("Mark it.", "An answer.", read_mark)
        with pytest.raises(ComponentError) as judged:
            Judge(asked, None)(ANSWERS)
    shown = [str(caught.value), repr(caught.value), str(judged.value), everything(judged.value), caplog.text]
    assert all(KEY not in text for text in [*shown, everything(caught.value), repr(asked), str(vars(asked))])


def test_a_key_that_changes_while_training_is_read_anew(monkeypatch):
    with serving((200, completion("3"))) as server:
        asked = endpoint(server)
        asked.ask("", "", read_mark)
        monkeypatch.setenv("JUDGE_KEY", "another")
        asked.ask("", "", read_mark)
    assert [r.headers["Authorization"] for r in server.requests] == [f"Bearer {KEY}", "Bearer another"]


def test_a_usable_key_is_one_that_a_header_can_hold(monkeypatch):
    assert usable_key("api_key_env", None) is None
    assert usable_key("api_key_env", "JUDGE_KEY") is None
    monkeypatch.setenv("JUDGE_KEY", f"{KEY}\n")  # as a file that ends in a newline gives it
    assert usable_key("api_key_env", "JUDGE_KEY") is None
    for value, what in (
        (f"{KEY}\nX: y", "characters that no key has"),
        ("schl\u00fcssel", "characters"),
        ("  ", "empty"),
    ):
        monkeypatch.setenv("JUDGE_KEY", value)
        problem = usable_key("api_key_env", "JUDGE_KEY")
        assert what in problem.what
        assert value.strip() == "" or value not in str(problem)


@pytest.mark.parametrize("found", [KEY, "sk_secret_that_looks_like_a_name", 7, "A B"])
def test_a_key_in_place_of_a_name_is_refused_without_repeating_it(found):
    assert str(found) not in str(usable_key("api_key_env", found))


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("http://judge.example/v1", "judge.example"),
        ("http://10.0.0.7:8000/v1", "10.0.0.7"),
        ("http://127.example.org/v1", "127.example.org"),
        ("https://judge.example/v1", None),
        ("http://localhost:8000/v1", None),
        ("http://127.0.0.1/v1", None),
        ("http://127.1.2.3:80/v1", None),
        ("http://[::1]:80/v1", None),
    ],
)
@pytest.mark.parametrize("key", ["JUDGE_KEY", None])
def test_a_key_that_others_can_read_on_the_way_is_warned_of(url, host, key, caplog):
    settings = RewardSettings("endpoint", None, url, "m", key, None, False, 1.0, 1, 1)
    settings.build(None)
    said = f"endpoint: the key in JUDGE_KEY goes to {host} over plain http, where others can read it on the way"
    assert [message.partition(" -> ")[0] for message in caplog.messages] == ([said] if host and key else [])


@pytest.mark.parametrize("url", ["https://host/v1", "http://127.0.0.1:8000/v1/", "http://[::1]:80/v1"])
def test_addresses_that_may_be_asked(url):
    assert valid_url("endpoint", url) is None


@pytest.mark.parametrize(
    "url",
    ["host/v1", "file:///etc/passwd", "ftp://host", "http://", "http://[::1", "http://host:port", 5, None,
     f"https://me:{KEY}@host/v1", f"https://host/v1?key={KEY}"],
)  # fmt: skip
def test_addresses_that_may_not(url):
    problem = valid_url("endpoint", url)
    assert problem is not None
    assert KEY not in str(problem)


# --- marks


@pytest.mark.parametrize(
    ("text", "mark"),
    [("8", 8), (" 7.5\n", 7.5), ("8/10", 8), ("Mark: 9 / 10.", 9), ("**10**", 10), ("0", 0), ("10/10", 10)],
)
def test_marks_that_can_be_read(text, mark):
    assert read_mark(text) == mark


@pytest.mark.parametrize("text", ["", "good", "8 or 9", "-1", "11", "1e3", "1 of 3 points", "80/100"])
def test_marks_that_cannot(text):
    assert read_mark(text) is None


# --- many answers


ANSWERS = [Answer(f"question {n}", f"answer {n % 3}", f"reference {n}") for n in range(9)]


def by_question(request):
    """Marks an answer by the number of its question."""
    number = int(request.body["messages"][1]["content"].split("question ")[1][0])
    return 200, completion(str(number))


def test_marks_are_in_the_order_of_the_answers_and_from_0_to_1():
    with serving(by_question) as server:
        np.testing.assert_allclose(Judge(endpoint(server), None)(ANSWERS), np.arange(9) / 10)
    assert {r.body["messages"][0]["content"] for r in server.requests} == {INSTRUCTION}


def test_equal_questions_are_asked_once():
    with serving((200, completion("5"))) as server:
        marks = Judge(endpoint(server), None)([ANSWERS[0], ANSWERS[1], ANSWERS[0]])
    assert marks.tolist() == [0.5] * 3
    assert len(server.requests) == 2


def test_the_judge_sees_the_reference_only_where_that_is_asked_for():
    for shows in (False, True):
        with serving((200, completion("5"))) as server:
            Judge(endpoint(server), None, shows_reference=shows, instruction="Be kind.")(ANSWERS[:1])
        system, user = (message["content"] for message in server.requests[0].body["messages"])
        assert system == "Be kind."
        assert ("reference 0" in user) is shows
        assert user.index("question 0") < user.index("answer 0")


def test_answers_that_get_no_mark_have_no_reward_and_a_warning_says_how_many(caplog):
    def sometimes(request):
        return (400, "too long") if "question 4" in request.body["messages"][1]["content"] else by_question(request)

    with serving(sometimes) as server, caplog.at_level(logging.WARNING):
        marks = Judge(endpoint(server), None)(ANSWERS)
    assert np.flatnonzero(np.isnan(marks)).tolist() == [4]
    assert "1 of 9 answers have no reward: 1 x HTTP status 400" in caplog.text


def test_no_mark_at_all_is_an_error():
    with serving((200, completion("no idea"))) as server:
        with pytest.raises(ComponentError, match=r"answered none of 9 questions: 9 x an answer .* -> check endpoint"):
            Judge(endpoint(server), None)(ANSWERS)
        assert len(server.requests) == 9 * 4


def test_a_dead_endpoint_is_given_up_long_before_every_question_was_asked():
    many = [Answer(f"question {n}", "answer", "") for n in range(400)]
    with serving((503, "down")) as server:
        with pytest.raises(ComponentError, match="answered none of 16 questions"):
            Judge(endpoint(server, attempts=1), None, concurrency=4)(many)
        assert len(server.requests) < 40


def test_questions_are_asked_at_the_same_time_and_no_more_than_allowed():
    running, most, lock, all_there = 0, 0, threading.Lock(), threading.Event()

    def slow(request):
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
            if running == 3:
                all_there.set()
        all_there.wait(10)
        with lock:
            running -= 1
        return 200, completion("5")

    with serving(slow) as server:
        Judge(endpoint(server, timeout=20.0), None, concurrency=3)(ANSWERS)
    assert most == 3


def test_a_wrong_key_stops_the_questions_that_wait():
    many = [Answer(f"question {n}", "answer", "") for n in range(400)]
    with serving((401, "no")) as server:
        with pytest.raises(ComponentError, match="HTTP status 401"):
            Judge(endpoint(server), None, concurrency=2)(many)
        assert len(server.requests) < 40


# --- ranks


def ranks(monkeypatch, on_main):
    """Runs rank 0 and then rank 1, whose broadcast brings what rank 0 sent."""
    sent = []

    def broadcast(values):
        if sent:
            values[:] = sent[0]
        else:
            sent.append(list(values))
        return values

    monkeypatch.setattr(module, "broadcast_object_list", broadcast)
    found = []
    for number in (0, 1):
        accelerator = SimpleNamespace(num_processes=2, is_main_process=number == 0)
        try:
            found.append(on_main(accelerator).tolist())
        except ComponentError as error:
            found.append(str(error))
    return found


def test_rank_0_asks_and_all_ranks_have_its_marks(monkeypatch):
    with serving(by_question) as server:
        first, second = ranks(monkeypatch, lambda accelerator: Judge(endpoint(server), accelerator)(ANSWERS))
    assert first == second == [n / 10 for n in range(9)]
    assert len(server.requests) == 9


def test_an_error_on_rank_0_is_one_on_all_ranks(monkeypatch):
    with serving((401, "no")) as server:
        first, second = ranks(monkeypatch, lambda accelerator: Judge(endpoint(server), accelerator)(ANSWERS))
    assert first == second
    assert "HTTP status 401" in first


@pytest.mark.parametrize("reply", ["hang", (429, "", {"Retry-After": "60"})])
def test_a_wish_to_stop_ends_requests_and_pauses_that_would_take_minutes(reply, monkeypatch):
    with serving(reply) as server:
        asked = ChatEndpoint(server.url, "judge-1", None, timeout=60.0)
        monkeypatch.setattr(module.sigterm, "asked", lambda: bool(server.requests))
        begun = time.monotonic()
        with pytest.raises(StoppedError, match="stopped by SIGTERM while a judge was asked"):
            Judge(asked, None)([Answer("q", "a", "a")])
        assert time.monotonic() - begun < 5
