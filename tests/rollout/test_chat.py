"""A partner over HTTP, against a real socket: text is dialogue, and nothing else ever is.

pytest tests/rollout/test_chat.py
"""

import json
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from osim_core.corpus.conversation import Message
from osim_core.judge.transport import Patience, Transport
from osim_core.missing import Missing
from osim_core.rollout.chat import HttpChat, read_reply
from osim_core.rollout.runner import ChatRequest, ChatSpeaker, Request
from osim_core.soul.episode import Ask


class Server(BaseHTTPRequestHandler):
    """Answers by the last message: "status 500", "raw TEXT", anything else with an echo of its seed."""

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.bodies.append(body)
        asked = body["messages"][-1]["content"]
        status = int(asked.removeprefix("status ")) if asked.startswith("status ") else 200
        answer = {"choices": [{"message": {"content": f"heard {asked}, seed {body['seed']}"}}]}
        raw = asked.removeprefix("raw ").encode() if asked.startswith("raw ") else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, *arguments):
        pass


@pytest.fixture(scope="module")
def server():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    server.bodies = []
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def chat(server):
    server.bodies.clear()
    patience = Patience(tries=2, pause_s=0.01, deadline_s=20)
    return HttpChat(Transport("partner", f"http://127.0.0.1:{server.server_port}/v1", "m", patience), temperature=0.7)


def request(*texts, seed=1):
    roles = ("user", "assistant")
    messages = [Message(roles[index % 2], text) for index, text in enumerate(texts)]
    return ChatRequest(messages, max_tokens=50, seed=seed)


def test_the_server_is_asked_what_the_episode_asked(server, chat):
    assert chat([request("hi", "hey", "how so?", seed=8)]) == ["heard how so?, seed 8"]
    (body,) = server.bodies
    assert body == {
        "model": "m",
        "messages": [
            {"role": "user", "content": "hi"},
            {"role": "assistant", "content": "hey"},
            {"role": "user", "content": "how so?"},
        ],
        "max_tokens": 50,
        "temperature": 0.7,
        "seed": 8,
    }


def test_failures_are_missing_where_they_happened_and_nowhere_else(chat):
    asked = ["hi", "status 500", "raw oops", "raw {}", "hi", "status 400", "raw "]
    answers = chat([request(text, seed=place) for place, text in enumerate(asked)])
    assert answers[0] == "heard hi, seed 0" and answers[4] == "heard hi, seed 4"
    reasons = Counter(answer.reason for answer in answers if isinstance(answer, Missing))
    assert reasons == {"server error": 1, "malformed answer": 3, "refused": 1}


def test_a_speaker_keeps_the_dialogue_and_leaves_failures_out_of_it(chat):
    speaker = ChatSpeaker(chat)
    talk, broken = speaker.open(), speaker.open()

    def ask(conversation, text, seed):
        return Request(conversation, Ask(speaker="partner", messages=(Message("user", text),), max_tokens=9), seed)

    first, failed = speaker.answer([ask(talk, "hi", 1), ask(broken, "status 500", 2)])
    assert (first.text, first.finish) == ("heard hi, seed 1", "stop")
    assert (failed.text.reason, failed.finish) == ("server error", "missing")
    speaker.answer([ask(talk, "and?", 3)])
    assert [(m.role, m.content) for m in talk] == [
        ("user", "hi"),
        ("assistant", "heard hi, seed 1"),
        ("user", "and?"),
        ("assistant", "heard and?, seed 3"),
    ]
    assert [m.role for m in broken] == ["user"]


def answered(content):
    return json.dumps({"choices": [{"message": {"content": content}}]}).encode()


@pytest.mark.parametrize(
    ("raw", "reply"),
    [
        (answered("hello"), "hello"),
        (answered("<think>be nice</think> hello "), "hello"),
        (answered("<think>it was cut"), Missing("empty answer", "the answer has no text")),
        (answered(" "), Missing("empty answer", "the answer has no text")),
        (answered(None), "malformed answer"),
        (answered(["hello"]), "malformed answer"),
        (b'{"choices": [{"message": {"content": "\\ud800"}}]}', "malformed answer"),
        (b'{"choices": []}', "malformed answer"),
        (b'{"error": {"message": "overloaded"}}', "malformed answer"),
        (b"[1]", "malformed answer"),
        (b"\xff\xfe\x00", "malformed answer"),
        (b"[" * 100_000, "malformed answer"),
        (b"", "malformed answer"),
    ],
)
def test_only_text_is_a_reply(raw, reply):
    found = read_reply(raw)
    assert (found.reason if isinstance(found, Missing) and isinstance(reply, str) else found) == reply
