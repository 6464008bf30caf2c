"""The HTTP judge against a real server that fails in every way a server can: no item lost, no failure a score."""

import json
import math
import re
import socket
import threading
import time
from collections import Counter

import pytest

from osim_core.endpoint import MAX_ANSWER_BYTES
from osim_core.judge import http_judge, transport
from osim_core.judge.cache import AnswerCache
from osim_core.judge.calibrate import Calibration
from osim_core.judge.http_judge import HttpJudge
from osim_core.judge.panel import CountedJudge, JudgeOutage, MissingLimit, check_watcher
from osim_core.judge.rubric import Dimension, JudgeItem, Verdict, load_rubric
from osim_core.judge.transport import Patience
from osim_core.missing import Missing
from tests.support.judge_server import JudgeServer, completion, top_logprobs

NEXT, INTENT, PAIR = (load_rubric(name) for name in ("next_turn", "intent", "turing_pair"))
GOOD = {"human_likeness": "10", "fits": "no", "register": "medium"}
QUICK = Patience(pause_s=0.01, timeout_s=5, hedge_s=None, deadline_s=20)


@pytest.fixture
def serve():
    servers = []

    def start(script) -> JudgeServer:
        servers.append(JudgeServer(script))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def judge(server, patience=QUICK, **options) -> HttpJudge:
    return HttpJudge("train", server.url, "m", [NEXT, INTENT, PAIR], patience, **options)


def items(count: int, rubric: str = "next_turn") -> list[JudgeItem]:
    return [JudgeItem(id=f"{i}", rubric=rubric, context="Ann: hey\n", reply=f"reply <{i}>") for i in range(count)]


def number(body) -> int:
    """Of the item that a request is about."""
    return int(re.search(r"reply <(\d+)>", body["messages"][1]["content"])[1])


def test_a_request_holds_the_rubric_the_item_and_the_schema(serve, monkeypatch):
    monkeypatch.setenv("OSIM_TEST_KEY", "secret")
    server = serve(lambda body, n: completion(GOOD))
    asked = judge(server, key_variable="OSIM_TEST_KEY")
    (verdict,) = asked.score(items(1))
    assert verdict.values == {"human_likeness": 1.0, "fits": 0.0, "register": 0.5}
    assert verdict.score == pytest.approx((2 * 1.0 + 0.0 + 0.5) / 4)
    (body,), (headers,) = server.bodies, server.headers
    assert headers["Authorization"] == "Bearer secret" and body["model"] == "m" and body["temperature"] == 0.0
    system, user = (message["content"] for message in body["messages"])
    assert system == NEXT.task and "Ann: hey" in user and "reply <0>" in user
    schema = body["response_format"]["json_schema"]["schema"]
    assert schema["properties"]["fits"] == {"type": "string", "enum": ["yes", "no"]}
    assert schema["required"] == list(GOOD)
    assert (asked.transport.traffic.prompt_tokens, asked.transport.traffic.completion_tokens) == (7, 3)
    assert asked.transport.traffic.cost(1e6, 2e6) == 7 + 6


def test_answers_come_in_the_order_of_the_items(serve):
    def script(body, n):
        time.sleep(0.05 if number(body) % 3 == 0 else 0)
        return completion({**GOOD, "human_likeness": str(number(body) % 10 + 1)})

    verdicts = judge(serve(script)).score(items(24))
    assert [v.details["human_likeness"]["score"] for v in verdicts] == [i % 10 + 1 for i in range(24)]


BAD = {
    "malformed answer": [b"garbage", completion("not json"), completion("[1, 2]"), b'{"choices": []}', b"[]", b"\x7b"],
    "empty answer": [b"", b"  ", completion(""), completion(None)],
    "undecodable answer": [b'{"choices": [{"message": {"content": "\xff\xfe"}}]}'],
    "oversized answer": [completion("word " * (MAX_ANSWER_BYTES // 5))],
    "cut answer": [completion('{"human_likeness": "1', "length"), completion("token " * 100_000, "length")],
    "refused": [(400, b"too long", {})],
    "server error": [(500, b"oops", {}), (503, b"", {})],
    "rate limited": [(429, b"slow down", {})],
    "connection": [
        None,
        (200, b"short", {"Content-Length": "100", "Connection": "close"}),
        (200, b"this is not gzip", {"Content-Encoding": "gzip"}),
    ],
    "timeout": [5.0],
}


@pytest.mark.parametrize(
    ("reason", "answer"),
    [(reason, answer) for reason, answers in BAD.items() for answer in answers],
    ids=[f"{reason}-{i}" for reason, answers in BAD.items() for i in range(len(answers))],
)
def test_what_is_no_answer_is_missing_with_its_reason(serve, reason, answer):
    server = serve(lambda body, n: answer if number(body) == 1 else completion(GOOD))
    silent = reason == "timeout"
    patience = Patience(pause_s=0.001, timeout_s=4 if silent else 30, hedge_s=None, tries=1 if silent else 2)
    asked = judge(server, patience)
    good, bad, last = asked.score(items(3))
    assert good.score == last.score == pytest.approx(0.625)
    assert isinstance(bad.score, Missing) and bad.score.reason == reason
    assert all(isinstance(value, Missing) for value in bad.values.values())
    assert asked.transport.traffic.failures == {reason: 1 if reason == "refused" else patience.tries}


def test_a_word_that_is_no_label_is_missing_in_its_dimension_alone(serve):
    odd = {"human_likeness": 7, "fits": ["yes"], "register": " Medium "}
    (verdict,) = judge(serve(lambda body, n: completion(odd))).score(items(1))
    assert verdict.values["human_likeness"] == pytest.approx(6 / 9) and verdict.values["register"] == 0.5
    assert verdict.values["fits"].reason == http_judge.OFF_LABEL
    assert verdict.score == pytest.approx((2 * 6 / 9 + 0.5) / 3)


def test_what_passes_is_asked_again_and_the_servers_pause_is_kept(serve):
    def script(body, n):
        return [(429, b"", {"Retry-After": "1"}), (500, b"", {}), b"garbage", completion(GOOD)][n - 1]

    server = serve(script)
    asked = judge(server)
    (verdict,) = asked.score(items(1))
    assert verdict.score == pytest.approx(0.625)
    assert server.times[1] - server.times[0] >= 1.0
    traffic = asked.transport.traffic
    assert (traffic.asked, traffic.requests, traffic.retries) == (1, 4, 3)
    assert traffic.failures == {"rate limited": 1, "server error": 1, "malformed answer": 1}


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_wrong_address_model_or_key_ends_the_step_at_once(serve, status):
    server = serve(lambda body, n: (status, b"no such model", {}))
    with pytest.raises(ValueError, match=rf"^judge train at {server.url}/chat/completions, model m: HTTP {status}: no"):
        judge(server).score(items(5))
    with pytest.raises(ValueError, match="'localhost:1' is not an http"):
        HttpJudge("train", "localhost:1", "m", [NEXT])


def test_a_slow_request_gets_a_twin_and_the_first_answer_counts(serve):
    def script(body, n):
        if number(body) == 2 and n == 1:
            time.sleep(6)
        return completion({**GOOD, "human_likeness": str(n)})

    server = serve(script)
    asked = judge(server, Patience(hedge_s=1.0, timeout_s=10, deadline_s=20))
    start = time.monotonic()
    verdicts = asked.score(items(4))
    assert time.monotonic() - start < 5.5
    assert [v.details["human_likeness"]["score"] for v in verdicts] == [1, 1, 2, 1]
    traffic = asked.transport.traffic
    assert (traffic.hedges, traffic.hedges_won, traffic.requests, traffic.retries) == (1, 1, 5, 0)


def test_the_deadline_holds_and_what_came_before_it_counts(serve):
    server = serve(lambda body, n: 30.0 if number(body) % 2 else completion(GOOD))
    asked = judge(server, Patience(hedge_s=None, timeout_s=60, deadline_s=2.0))
    start = time.monotonic()
    verdicts = asked.score(items(6))
    assert time.monotonic() - start < 8
    assert [isinstance(v.score, Missing) and v.score.reason for v in verdicts] == [False, transport.DEADLINE] * 3
    assert asked.transport.traffic.failures == {transport.DEADLINE: 3}


def test_a_reply_that_trickles_in_times_out(serve):
    """Every byte comes in time, the whole does not."""
    listener = socket.create_server(("127.0.0.1", 0))

    def trickle():
        connection, _ = listener.accept()
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        try:
            for _ in range(100):
                connection.sendall(b" ")
                time.sleep(0.1)
        except OSError:
            return

    threading.Thread(target=trickle, daemon=True).start()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
    asked = HttpJudge("train", url, "m", [NEXT], Patience(timeout_s=0.6, tries=1, hedge_s=None, deadline_s=20))
    start = time.monotonic()
    (verdict,) = asked.score(items(1))
    listener.close()
    assert verdict.score.reason == "timeout" and time.monotonic() - start < 5


def test_concurrency_and_rate_are_limited(serve):
    running, most, lock = Counter(), [], threading.Lock()

    def script(body, n):
        with lock:
            running["now"] += 1
            most.append(running["now"])
        time.sleep(0.03)
        with lock:
            running["now"] -= 1
        return completion(GOOD)

    server = serve(script)
    judge(server, Patience(concurrency=3, hedge_s=None)).score(items(12))
    assert max(most) <= 3 and len(most) == 12
    server = serve(lambda body, n: completion(GOOD))
    judge(server, Patience(rate=20, hedge_s=None)).score(items(25))
    assert max(server.times) - min(server.times) >= 0.7  # 24 gaps of 1/20 s; a busy machine may see the first one late


def test_the_cache_repeats_a_step_without_a_server_and_keeps_only_answers(serve, tmp_path):
    failing = {2}
    server = serve(lambda body, n: b"garbage" if number(body) in failing else completion(GOOD))
    cache = AnswerCache(tmp_path / "new" / "answers.sqlite")
    patience = Patience(pause_s=0.001, tries=2, hedge_s=None)
    first = judge(server, patience, cache=cache).score(items(4))
    assert [isinstance(v.score, Missing) for v in first] == [False, False, True, False]
    cache.close()  # as after a kill: another process opens the file
    failing.clear()
    with_cache = judge(server, patience, cache=AnswerCache(tmp_path / "new" / "answers.sqlite"))
    before = len(server.bodies)
    again = with_cache.score(items(4))
    assert len(server.bodies) == before + 1 and with_cache.transport.traffic.cached == 3
    assert [v.score for v in again] == [first[0].score] * 4
    other = HttpJudge("t", server.url, "other model", [NEXT], patience, cache=with_cache.transport.cache)
    other.score(items(1))
    assert len(server.bodies) == before + 2
    elsewhere = serve(lambda body, n: completion(GOOD))
    judge(elsewhere, patience, cache=with_cache.transport.cache).score(items(1))
    assert len(elsewhere.bodies) == 1
    (tmp_path / "bad").write_bytes(b"no database, " * 99)
    with pytest.raises(ValueError, match=r"judge cache .*bad: "):
        AnswerCache(tmp_path / "bad")


def test_logprobs_are_an_expectation_over_the_labels(serve):
    top = {"yes": 0.5, " Yes": 0.1, "No": 0.2, "Hmm": 0.15, "zzz": 0.01}
    low = {"lo": 0.3, "high": 0.2, "medium": 0.4, "x": 0.1}
    letters = {"A": 0.6, "x": 0.02}

    def script(body, n):
        assert body["max_tokens"] == 1 and body["logprobs"] and body["top_logprobs"] == 20
        asked = body["messages"][1]["content"]
        chosen = top if "yes, no" in asked else low if "low, medium" in asked else letters
        return top_logprobs({token: math.log(p) for token, p in chosen.items()})

    asked = HttpJudge(
        "t", serve(script).url, "m", [INTENT], QUICK, answers="logprobs",
        calibrations={"intent": {"own_words": Calibration(2.0)}},
    )  # fmt: skip
    (verdict,) = asked.score(items(1, "intent"))
    assert verdict.values["adherence"] == pytest.approx(0.6 / 0.8)
    roots = {label: math.sqrt(p) for label, p in (("low", 0.3), ("medium", 0.4), ("high", 0.2))}
    assert verdict.values["own_words"] == pytest.approx((0.5 * roots["medium"] + roots["high"]) / sum(roots.values()))
    assert verdict.details["adherence"]["mass"] == pytest.approx(0.8)
    assert verdict.values["role"] == pytest.approx(0.6 / 0.62)  # B is unseen: as likely as the last one, at most


def test_logprobs_without_the_labels_are_missing(serve):
    answers = iter(
        [
            top_logprobs({f"t{i}": math.log(0.05) for i in range(20)}),  # flat: the bound alone is no mass
            top_logprobs({"low": float("nan"), "x": -1.0}),
            completion("yes"),
        ]
    )
    asked = HttpJudge("t", serve(lambda body, n: next(answers)).url, "m", [INTENT],
                      Patience(concurrency=1, tries=1, hedge_s=None), answers="logprobs")  # fmt: skip
    (verdict,) = asked.score(items(1, "intent"))
    assert [v.reason for v in verdict.values.values()] == ["low label mass", "malformed answer", "malformed answer"]
    assert isinstance(verdict.score, Missing)
    with pytest.raises(ValueError, match="'human_likeness': one of its labels begins another"):
        HttpJudge("t", "http://x/v1", "m", [NEXT], answers="logprobs")


def test_an_order_bias_of_a_pair_cancels(serve):
    def script(body, n):
        text = body["messages"][1]["content"]
        own_first = text.index("mine") < text.index("other one")
        log_odds = 1.0 + (0.8 if own_first else -0.8)  # likes the first place by 1, and mine by 0.8
        p = 1 / (1 + math.exp(-log_odds))
        return top_logprobs({"A": math.log(p), "B": math.log(1 - p)})

    pair = JudgeItem(id="p", rubric="turing_pair", context="c", reply="mine", other="other one")
    asked = HttpJudge("t", serve(script).url, "m", [PAIR], QUICK, answers="logprobs")
    (verdict,) = asked.score([pair])
    assert verdict.score == pytest.approx(1 / (1 + math.exp(-0.8)))
    assert verdict.details["real"]["order_bias"] == pytest.approx(1.0)


@pytest.mark.parametrize(("first", "second", "value"), [("A", "B", 1.0), ("A", "A", 0.5), ("B", "A", 0.0)])
def test_a_pair_in_words_is_agreement_or_half(serve, first, second, value):
    def script(body, n):
        text = body["messages"][1]["content"]
        return completion({"real": first if text.index("mine") < text.index("other one") else second})

    pair = JudgeItem(id="p", rubric="turing_pair", context="c", reply="mine", other="other one")
    assert judge(serve(script)).score([pair])[0].score == value


def test_thirty_percent_of_faults_lose_nothing_and_count_right(serve):
    """429, 500, silence, garbage and dropped connections on 30 % of the first attempts, and always on some items."""
    faults = [(429, b"", {}), (500, b"", {}), b"garbage", None, 5.0]
    reasons = ["rate limited", "server error", "malformed answer", "connection", "timeout"]
    hopeless = {7: 1, 40: 2}  # item -> its fault, every time

    def fault_of(i: int) -> int | None:
        return hopeless.get(i, i // 10 % 5 if i % 10 in (1, 4, 8) else None)

    def script(body, n):
        i = number(body)
        if i in hopeless or (n == 1 and fault_of(i) is not None):
            return faults[fault_of(i)]
        return completion({**GOOD, "human_likeness": str(i % 10 + 1)})

    patience = Patience(pause_s=0.01, timeout_s=4.0, hedge_s=None, tries=3, concurrency=32)
    asked = judge(serve(script), patience)
    counted = CountedJudge(asked, MissingLimit(share=0.3))
    verdicts = counted.score(items(100))
    for i, verdict in enumerate(verdicts):
        if i in hopeless:
            assert isinstance(verdict.score, Missing) and verdict.score.reason == reasons[hopeless[i]]
        else:
            assert verdict.details["human_likeness"]["score"] == i % 10 + 1
    expected = Counter(reasons[fault_of(i)] for i in range(100) if i not in hopeless and fault_of(i) is not None)
    expected.update({reasons[fault]: 3 for fault in hopeless.values()})
    traffic = asked.transport.traffic
    assert traffic.failures == expected
    assert traffic.requests == 100 + traffic.retries and traffic.retries == expected.total() - len(hopeless)
    assert counted.missing == {"server error": 1, "malformed answer": 1}
    assert counted.metrics() == {
        "judge/train/items": 100.0,
        "judge/train/missing": 2.0,
        "judge/train/missing/server error": 1.0,
        "judge/train/missing/malformed answer": 1.0,
    }


def test_a_judge_that_is_down_from_the_start_is_one_line_after_the_deadline():
    with socket.create_server(("127.0.0.1", 0)) as probe:
        url = f"http://127.0.0.1:{probe.getsockname()[1]}/v1"  # nobody listens there once it is closed
    down = HttpJudge("train", url, "m", [NEXT], Patience(deadline_s=1.0, pause_s=0.4, tries=100))
    start = time.monotonic()
    with pytest.raises(JudgeOutage, match=r"^judge train: 3 of the latest 3 items got no score.*3 deadline") as caught:
        CountedJudge(down, MissingLimit()).score(items(3))
    assert time.monotonic() - start < 5 and "\n" not in str(caught.value)


class Scripted:
    """A judge whose verdicts are known."""

    name, identity = "scripted", "scripted 1"

    def __init__(self, *calls) -> None:
        self.calls = iter(calls)

    def score(self, items):
        scores = [Missing("timeout", "x") if failed else 0.5 for failed in next(self.calls)]
        return [Verdict(values={"d": score}, score=score) for score in scores]


def test_the_limit_is_on_the_latest_items():
    fine, some, many = [0] * 20, [1] * 6 + [0] * 14, [1] * 9 + [0] * 11
    counted = CountedJudge(Scripted(fine, some, fine, many, many), MissingLimit(share=0.3, window=40))
    for _ in range(4):  # 9 of the latest 40
        assert len(counted.score(items(20))) == 20
    with pytest.raises(JudgeOutage, match="18 of the latest 40 items got no score, more than the limit of 30%"):
        counted.score(items(20))
    assert counted.items == 100 and counted.missing == {"timeout": 24}
    big = CountedJudge(Scripted([1] * 40 + [0] * 60), MissingLimit(share=0.3, window=10))
    with pytest.raises(JudgeOutage, match="40 of the latest 100"):  # the end of the call alone is fine
        big.score(items(100))
    few = CountedJudge(Scripted([1, 0], [1, 0]), MissingLimit(share=0.3))
    assert len(few.score(items(2))) == len(few.score(items(2))) == 2  # too few to tell
    with pytest.raises(ValueError, match=re.escape("share lies in [0, 1)")):
        MissingLimit(share=1.0)


def test_a_held_out_judge_must_be_another_one():
    with pytest.raises(ValueError, match="the held-out judge 'scripted' is the training judge"):
        check_watcher(Scripted(), Scripted())
    check_watcher(Scripted(), HttpJudge("other", "http://x/v1", "m", [NEXT]))


def test_identity_tells_rubrics_models_and_ways_apart():
    def identity(rubrics=(INTENT,), **options):
        return HttpJudge("t", "http://x/v1", **{"model": "m", **options}, rubrics=rubrics).identity

    assert len({identity(), identity((INTENT, PAIR)), identity(model="n"), identity(answers="logprobs")}) == 4
    assert json.dumps(identity()) and identity() == identity()


def test_a_token_counts_for_the_only_label_that_it_begins():
    often = Dimension(name="x", question="?", labels=("often", "other", "Never"), values=(1, 0, 0), anchors=("",) * 3)
    top = {"o": 0.3, "of": 0.1, " OFTEN": 0.2, "ne": 0.05, "": 0.1, " ": 0.1, "oftentimes": 0.05}
    found = http_judge.label_masses(often, {token: math.log(p) for token, p in top.items()})
    assert found == [pytest.approx(math.log(0.3)), None, pytest.approx(math.log(0.05))]
