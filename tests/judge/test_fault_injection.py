"""vLLM's own server behind a proxy that fails 30 % of the attempts: every verdict is what the server alone gives."""

import hashlib
import json
import threading
import urllib.error
import urllib.request
from collections import Counter

import pytest

from osim_core.judge.http_judge import HttpJudge
from osim_core.judge.panel import CountedJudge, MissingLimit
from osim_core.judge.rubric import JudgeItem, load_rubric
from osim_core.judge.transport import Patience
from osim_core.missing import Missing
from tests.judge.cases import CHAT, REPLIES, tiny_judge
from tests.support.judge_server import JudgeServer
from tests.support.vllm_server import vllm_server

FAULTS = {
    "rate limited": (429, b"slow down", {}),
    "server error": (500, b"internal error", {}),
    "timeout": 100.0,
    "malformed answer": b"<html>garbage</html>",
    "undecodable answer": b'{"choices": "\xff\xfe\xfd"}',
    "connection": None,
}
SHARE = 30  # per cent
ITEMS = [JudgeItem(id=str(i), rubric="next_turn", context=CHAT, reply=f"{REPLIES[i % 4]} {i}") for i in range(60)]


class FaultyProxy:
    """Forwards to `url`, or fails: what happens to the n-th coming of a request is drawn from its bytes and n."""

    def __init__(self, url: str) -> None:
        self.url, self.injected, self.lock = url, Counter(), threading.Lock()
        self.server = JudgeServer(self._answer)

    def _answer(self, body, n):
        raw = json.dumps(body, sort_keys=True).encode()
        draw = int.from_bytes(hashlib.sha256(raw + bytes([n])).digest()[:4])
        if draw % 100 < SHARE:
            reason = list(FAULTS)[draw // 100 % len(FAULTS)]
            with self.lock:
                self.injected[reason] += 1
            return FAULTS[reason]
        request = urllib.request.Request(f"{self.url}/chat/completions", raw, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=120) as response:
                return response.status, response.read(), {}
        except urllib.error.HTTPError as error:
            return error.code, error.read(), {}


@pytest.mark.slow
def test_a_failing_vllm_server_loses_no_item_and_fakes_no_score(tmp_path):
    rubric = load_rubric("next_turn")
    folder = tiny_judge(tmp_path / "model", context=4096, sharpness=4.0)
    with vllm_server(folder, tmp_path / "vllm.log", context=4096) as url:
        calm = Patience(timeout_s=300, hedge_s=None, deadline_s=600, concurrency=16)
        truth = HttpJudge("alone", url, "judge", [rubric], calm).score(ITEMS)
        assert not any(isinstance(verdict.score, Missing) for verdict in truth)
        assert len({verdict.score for verdict in truth}) > 3
        proxy = FaultyProxy(url)
        patience = Patience(timeout_s=20, hedge_s=None, deadline_s=600, concurrency=16, tries=3, pause_s=0.01)
        judge = HttpJudge("train", proxy.server.url, "judge", [rubric], patience)
        counted = CountedJudge(judge, MissingLimit(share=0.3))
        found = counted.score(ITEMS)
        proxy.server.close()
    assert len(found) == len(ITEMS)
    for one, two in zip(found, truth, strict=True):
        if isinstance(one.score, Missing):
            assert one.score.reason in FAULTS  # three faults in a row
        else:
            assert one.values == two.values and one.score == two.score
    missing = Counter(verdict.score.reason for verdict in found if isinstance(verdict.score, Missing))
    traffic = judge.transport.traffic
    assert traffic.failures == proxy.injected and proxy.injected.total() > 15 and len(proxy.injected) == len(FAULTS)
    assert traffic.requests == len(ITEMS) - missing.total() + traffic.failures.total()
    assert counted.missing == missing and missing.total() < 6
    print(f"{traffic.requests} requests, {dict(traffic.failures)} failed, {missing.total()} of {len(ITEMS)} missing")
