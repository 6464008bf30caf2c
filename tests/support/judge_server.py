"""A real server on this machine that answers chat completions as a script says, and counts what it was asked."""

import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Script = Callable[[dict[str, Any], int], Any]


class JudgeServer:
    """`script(body, n)`, with n the times that this very body has come, gives (status, bytes, headers), or bytes to
    answer 200 with, seconds to be silent before the connection ends, or None to end it at once."""

    def __init__(self, script: Script) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.times: list[float] = []
        self.seen: Counter[bytes] = Counter()
        self.lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                raw = self.rfile.read(int(self.headers["Content-Length"]))
                with outer.lock:
                    outer.times.append(time.monotonic())
                    outer.seen[raw] += 1
                    count = outer.seen[raw]
                    outer.bodies.append(json.loads(raw))
                    outer.headers.append(dict(self.headers))
                answer = script(json.loads(raw), count)
                if isinstance(answer, bytes):
                    answer = (200, answer, {})
                if not isinstance(answer, tuple):
                    time.sleep(answer or 0)
                    self.close_connection = True
                    return
                status, content, headers = answer
                self.send_response(status)
                for key, value in {"Content-Length": str(len(content)), **headers}.items():
                    self.send_header(key, value)
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *args) -> None:
                pass

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

            def handle_error(self, request, client_address) -> None:
                pass  # clients hang up on purpose here

        self.http = Quiet(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http.server_address[1]}/v1"

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()


def completion(content: Any, finish: str = "stop", **choice: Any) -> bytes:
    """The bytes of a chat completion with this content: text, or an object to write as JSON."""
    text = content if isinstance(content, str) or content is None else json.dumps(content)
    message = {"role": "assistant", "content": text}
    whole = {"choices": [{"index": 0, "message": message, "finish_reason": finish, **choice}]}
    return json.dumps({**whole, "usage": {"prompt_tokens": 7, "completion_tokens": 3}}).encode()


def top_logprobs(top: dict[str, float]) -> bytes:
    """The bytes of a chat completion that tells these likeliest first tokens."""
    entries = [{"token": token, "logprob": logprob, "bytes": None} for token, logprob in top.items()]
    first = {"token": "x", "logprob": -0.1, "top_logprobs": entries}
    return completion("x", "length", logprobs={"content": [first]})
