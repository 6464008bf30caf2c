"""Contexts that a model writes in a build: counted with their cost, paid for once; too many failures stop."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pyarrow.parquet as pq
import pytest

from osim_core.config import ContextConfig, DecontaminateConfig
from tests.corpus.planted import built, plant

CONTEXT = {
    "persona": "You are a clerk.",
    "relationship": "Friends.",
    "scene": "A chat at work.",
    "goal": "To be heard.",
}


@pytest.fixture
def server():
    """Answers every request but those about p7 with CONTEXT, and counts them in `server.asked`."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            server.asked += 1
            refused = "Speaker to describe: p7" in body["messages"][-1]["content"]
            message = {"role": "assistant", "content": json.dumps(CONTEXT)}
            answer = {"choices": [{"message": message}], "usage": {"prompt_tokens": 100, "completion_tokens": 10}}
            self.send_response(400 if refused else 200)
            self.end_headers()
            self.wfile.write(json.dumps(answer).encode())

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.asked = 0
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_a_model_writes_contexts_once_and_its_failures_are_counted_or_stop(tmp_path, server):
    config = plant(tmp_path)
    writer = ContextConfig(
        writer="endpoint",
        base_url=f"http://127.0.0.1:{server.server_address[1]}/v1",
        model="m",
        prompt_price=2.0,
        completion_price=10.0,
    )
    friends = {
        "sources": {"convokit_friends": config.sources["convokit_friends"]},
        "rows": (),
        "decontaminate": DecontaminateConfig(benchmarks=False),
    }
    with pytest.raises(ValueError, match=r"convokit_friends: [78] of 60 contexts could not be written \(\{'refused'"):
        built(config, context=writer, **friends)
    assert server.asked == 60
    lenient = ContextConfig(**{**vars(writer), "max_missing_share": 0.2})
    corpus = built(config, context=lenient, **friends)
    assert server.asked == 60, "what was written is not paid for again"

    (row,) = json.loads((corpus.folder / "manifest.json").read_text())["contexts"]
    assert row["written"] + row["missing"] == 60 and row["missing_by"] == {"refused": row["missing"]}
    assert row["prompt_tokens"] == 100 * row["written"]
    assert row["cost"] == pytest.approx(row["written"] * (100 * 2.0 + 10 * 10.0) / 1e6)
    audit = pq.read_table(corpus.folder / "audit").to_pylist()
    assert {each["context"] for each in audit if each["id"].endswith("/p7")} == {"missing"}
    assert {each["context"] for each in audit if not each["id"].endswith("/p7")} == {"written"}


def test_a_writer_without_its_model_is_refused_before_anything_is_read(tmp_path):
    config = plant(tmp_path)
    with pytest.raises(ValueError, match=r"context\.writer endpoint needs context\.model"):
        built(config, context=ContextConfig(writer="endpoint", base_url="http://localhost:1/v1"))
    assert not (tmp_path / "data").exists()
