"""The endpoint writer against a real HTTP server on this machine that fails in every way a server can."""

import json
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from osim_core.corpus.context import prompt
from osim_core.corpus.context.endpoint import EndpointDown, EndpointWriter
from osim_core.corpus.context.generate import ContextReport, contextualise
from osim_core.corpus.context.schema import JSON_SCHEMA, SocialContext
from osim_core.corpus.context.store import ContextStore
from osim_core.corpus.context.writers import Request
from osim_core.corpus.sources.dialogue import Dialogue, Turn

GOOD = {"persona": "You are a cook.", "relationship": "Friends.", "scene": "A chat.", "goal": "To get help."}


def completion(content, **usage):
    answer = {"id": "c", "object": "chat.completion", "choices": [{"index": 0, "message": {"role": "assistant"}}]}
    answer["choices"][0]["message"]["content"] = content
    return json.dumps(answer | ({"usage": usage} if usage else {}))


class Server:
    """Answers as `script` says: called with (text of the user message, how often it was asked), it gives
    (status, body, headers), or a number of seconds to be silent, or None to drop the connection."""

    def __init__(self, script):
        self.requests, self.times, self.seen, self.lock = [], [], Counter(), threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                text = body["messages"][-1]["content"]
                name = text.split("a: ")[1].split("\n")[0]
                with outer.lock:
                    outer.requests.append((self.path, dict(self.headers), body))
                    outer.times.append(time.monotonic())
                    outer.seen[name] += 1
                    count = outer.seen[name]
                answer = script(name, count)
                if isinstance(answer, float):
                    time.sleep(answer)
                    answer = None
                if answer is None:
                    self.close_connection = True
                    return
                status, content, headers = answer
                self.send_response(status)
                for key, value in headers.items():
                    self.send_header(key, value)
                self.end_headers()
                self.wfile.write(content.encode())

            def log_message(self, *args):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.http.server_address[1]}/v1"


@pytest.fixture
def serve():
    servers = []

    def start(script):
        servers.append(Server(script))
        return servers[-1]

    yield start
    for server in servers:
        server.http.shutdown()
        server.http.server_close()


def request(name, **more):
    return Request(Dialogue(name, "s", (Turn("a", name), Turn("b", "well then, fine by me")), ("b",)), "b", **more)


def writer(server, **options):
    options = {"pause_s": 0.01, "timeout_s": 5.0, "tries": 3} | options
    return EndpointWriter(base_url=server.url, model="m", **options)


def ok(**usage):
    return 200, completion(json.dumps(GOOD), **usage), {}


def test_a_request_is_a_chat_completion_with_the_schema_and_the_key(serve, monkeypatch):
    monkeypatch.setenv("OSIM_TEST_KEY", "secret")
    server = serve(lambda name, count: ok(prompt_tokens=7, completion_tokens=3))
    (draft,) = writer(server, key_variable="OSIM_TEST_KEY").write([request("one")])
    assert draft.context == SocialContext(**GOOD) and (draft.prompt_tokens, draft.completion_tokens) == (7, 3)
    ((path, headers, body),) = server.requests
    assert path == "/v1/chat/completions" and headers["Authorization"] == "Bearer secret"
    assert body["model"] == "m" and body["temperature"] == 0 and body["messages"] == prompt.messages(request("one"))
    assert body["response_format"]["json_schema"]["schema"] == JSON_SCHEMA


def test_no_key_sends_none_and_a_second_attempt_is_sampled(serve, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    server = serve(lambda name, count: ok())
    (draft,) = writer(server).write([request("one", attempt=1, rejected="leaks")])
    _, headers, body = server.requests[0]
    assert "Authorization" not in headers and body["temperature"] > 0 and body["seed"] == 1
    assert draft.prompt_tokens is None  # a server without usage is not taken for a free one


def test_answers_keep_their_order_whatever_comes_first(serve):
    def script(name, count):
        time.sleep(0.05 if name == "0" else 0)
        return 200, completion(json.dumps({**GOOD, "scene": f"Scene {name}."})), {}

    drafts = writer(serve(script), concurrency=8).write([request(str(i)) for i in range(12)])
    assert [draft.context.scene for draft in drafts] == [f"Scene {i}." for i in range(12)]


def test_concurrency_is_bounded_and_used(serve):
    now, most, lock = [0], [0], threading.Lock()

    def script(name, count):
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        time.sleep(0.03)
        with lock:
            now[0] -= 1
        return ok()

    writer(serve(script), concurrency=4).write([request(str(i)) for i in range(16)])
    assert 2 <= most[0] <= 4


def test_rate_limits_are_waited_for_as_long_as_the_server_asks(serve):
    server = serve(lambda name, count: (429, "slow down", {"Retry-After": "1"}) if count == 1 else ok())
    (draft,) = writer(server).write([request("one")])
    assert draft.context and server.seen["one"] == 2
    assert server.times[1] - server.times[0] >= 1.0


@pytest.mark.parametrize("fault", [(500, "oops", {}), (503, "busy", {}), (429, "", {}), None])
def test_passing_faults_are_tried_again(serve, fault):
    server = serve(lambda name, count: fault if count < 3 else ok())
    (draft,) = writer(server).write([request("one")])
    assert draft.context and server.seen["one"] == 3


def test_a_silent_server_times_out_and_the_others_are_not_lost(serve):
    server = serve(lambda name, count: 3.0 if name == "slow" else ok())
    start = time.monotonic()
    slow, fast = writer(server, timeout_s=0.2, tries=2).write([request("slow"), request("fast")])
    assert slow.fault == "transport" and "2 tries" in slow.reason and "timed out" in slow.reason
    assert fast.context and time.monotonic() - start < 2.5


BAD_BODIES = {
    "no json": "<html>gateway</html>",
    "no choices": '{"choices": []}',
    "a list": "[1]",
    "no text": completion(None),
    "not utf-8 json": "\x00",
    "prose": completion("Sure! The person is a cook."),
    "short": completion('{"persona": "You are a cook."}'),
}


@pytest.mark.parametrize("name", BAD_BODIES)
def test_answers_that_are_no_context_are_faults_of_the_row(serve, name):
    server = serve(lambda _, count: (200, BAD_BODIES[name], {}))
    (draft,) = writer(server).write([request("one")])
    assert draft.context is None and draft.fault == "schema" and draft.reason
    assert server.seen["one"] == 1  # asking the same again is for the caller to decide


def test_a_request_that_the_server_refuses_is_one_row_and_not_repeated(serve):
    server = serve(lambda name, count: (400, "context length exceeded", {}) if name == "long" else ok())
    long, short = writer(server).write([request("long"), request("short")])
    assert (long.fault, server.seen["long"]) == ("refused", 1) and "context length" in long.reason and short.context


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_wrong_key_or_model_stops_the_run_in_one_line(serve, status):
    server = serve(lambda name, count: (status, '{"error": "no such model"}', {}))
    with pytest.raises(ValueError, match=rf"model m: HTTP {status}.*no such model"):
        writer(server, concurrency=1).write([request(str(i)) for i in range(50)])
    assert len(server.requests) < 50


def test_a_server_that_is_gone_stops_the_run_and_what_was_written_stays(serve, tmp_path):
    server = serve(lambda name, count: ok(prompt_tokens=1, completion_tokens=1) if int(name) < 4 else None)
    dialogues = [request(str(i)).dialogue for i in range(40)]
    path = tmp_path / "contexts.sqlite"
    gone = writer(server, tries=1, max_failures=5, concurrency=1)
    done = []
    with ContextStore(path) as store, pytest.raises(EndpointDown, match=r"5 requests in a row got no answer \(Remote"):
        done.extend(contextualise(dialogues, gone, store, ContextReport(), batch=4))
    assert len(server.requests) == 9
    back = serve(lambda name, count: ok(prompt_tokens=1, completion_tokens=1))
    with ContextStore(path) as store:
        rows = [row for _, row in contextualise(dialogues, writer(back), store, ContextReport(), batch=4)]
    assert all(row.status == "written" for row in rows) and len(back.requests) == 36


def test_a_model_that_quotes_is_told_so_and_mends_its_ways(serve):
    def script(name, count):
        quote = {**GOOD, "goal": "To say: well then, fine by me"}
        return 200, completion(json.dumps(quote if count == 1 else GOOD), prompt_tokens=5, completion_tokens=2), {}

    server = serve(script)
    report = ContextReport(1.0, 1.0)
    ((conversation, row),) = contextualise([request("one").dialogue], writer(server), ContextStore(), report)
    assert row.status == "written" and row.attempts == 2 and row.prompt_tokens == 10
    assert "fine by me" in server.requests[1][2]["messages"][1]["content"].split("could not be used")[1]
    assert "fine by me" not in conversation.messages[0].content
    assert report.rows()[0]["cost"] == pytest.approx(14 / 1e6)


def test_an_address_without_http_is_refused():
    with pytest.raises(ValueError, match="'file:///etc' is not an http"):
        EndpointWriter(base_url="file:///etc", model="m")
