"""report.html says what the metrics say, needs nothing from a network, and refuses what is not a run."""

import json
import math
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from osim_core.observe.charts import Chart, Line, running_mean, svg
from osim_core.observe.metrics import MetricsLog
from osim_core.observe.report import History, main, outcome_sentence, write_report
from osim_core.observe.run_dir import RunDirectory


@pytest.fixture
def run(tmp_path) -> RunDirectory:
    """60 steps of two sources; the held-out loss falls from 6 to 4.5, below the unigram and above the trigram."""
    (tmp_path / "config.json").write_text(
        json.dumps({"name": "tiny <b>cpu</b>", "model": {"num_layers": 4, "from_hf": None}, "data": {"paths": []}})
    )
    run = RunDirectory(tmp_path)
    with MetricsLog(run) as log:
        log.log(0, {"baseline/unigram": 5.5, "baseline/trigram": 4.25})
        log.log(0, {"val/loss": 6.0, "val/loss/debates": 6.5, "val/loss/chitchat": 5.5})
        for step in range(1, 61):
            log.log(step, {"train/loss": 6.0 - step / 40, "train/grad_norm": 1.5, "perf/tokens_per_second": 900 + step})
        log.log(60, {"val/loss": 4.5, "val/loss/debates": 5.2, "val/loss/chitchat": 4.4})
    return run


class Text(HTMLParser):
    """The words of a page, and every address that it would fetch."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.words, self.fetched = [], []
        self.feed(page)

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def handle_starttag(self, tag: str, attrs) -> None:
        self.fetched += [v for k, v in attrs if k in ("src", "href", "xlink:href") and not v.startswith("#")]


def test_the_page_says_what_was_measured_and_fetches_nothing(run):
    page = write_report(run.path).read_text()
    text = Text(page)
    words = " ".join(text.words)
    assert text.fetched == [] and "url(http" not in page and "@import" not in page
    assert "Held-out loss fell from 6.000 to 4.500 nats per token (-25.0%) in 60 steps so far" in words
    assert "at 4.500 it beats the unigram baseline (5.500) and does not beat the trigram baseline (4.250)." in words
    assert "tiny <b>cpu</b>" in words  # escaped, not markup
    assert "931" in words  # the median speed
    assert re.search(r"debates\s+6\.500\s+5\.200\s+-20\.0%", " ".join(words.split()))
    for title in ("Loss", "Held-out loss by source", "Throughput", "Gradient norm"):
        assert title in text.words
    for absent in ("Padding", "Learning rate", "Model-FLOPs utilisation"):  # not measured, so not drawn
        assert absent not in text.words
    assert "num_layers" in words and "unigram 5.5" in words


def test_the_same_run_gives_the_same_page_and_a_finished_one_says_so(run):
    first = write_report(run.path).read_bytes()
    assert write_report(run.path).read_bytes() == first
    run.write_summary({"steps": 60, "outcome": {"held_out_loss_fell": True}})
    page = write_report(run.path).read_text()
    assert "in 60 steps;" in page and "held_out_loss_fell" in page


def test_a_loss_that_rose_and_non_finite_values_are_not_hidden(run):
    with MetricsLog(run, 60) as log:
        log.log(61, {"train/loss": math.nan, "train/grad_norm": math.inf})
        log.log(61, {"val/loss": 7.5})
    page = write_report(run.path).read_text()
    assert "did not fall: from 6.000 to 7.500 nats per token (+25.0%)" in page
    assert "2 non-finite values; the first is train/grad_norm at step 61." in page


def test_the_final_evaluation_is_what_baselines_are_held_against():
    history = History([{"step": 0, "val/loss": 5.0, "baseline/trigram": 4.0}, {"step": 9, "val/loss": 3.9}])
    assert "at 3.900 it beats the trigram" in outcome_sentence(history, True)
    history = History([{"step": 0, "val/loss": 5.0, "baseline/trigram": 4.0}, {"step": 9, "final/loss": 4.1}])
    assert "at 4.100 it does not beat the trigram" in outcome_sentence(history, True)


def test_what_is_not_a_run_or_has_no_metrics_is_exit_2_and_one_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "config.json").write_text("{}")
    for folder, words in ((tmp_path / "nowhere", "no such run directory"), (tmp_path, "no metrics yet")):
        monkeypatch.setattr("sys.argv", ["report", str(folder)])
        with pytest.raises(SystemExit) as stopped:
            main()
        error = capsys.readouterr().err
        assert stopped.value.code == 2 and words in error and error.count("\n") == 1
    assert not (tmp_path / "report.html").exists()


def test_a_chart_draws_every_finite_point_and_leaves_gaps():
    steps = list(range(10))
    values = [1.0, 2.0, math.nan, 4.0, 5.0, math.inf, 7.0, 8.0, 9.0, 10.0]
    drawing = svg(Chart("t", "u", [Line("a", steps, values)]))
    ElementTree.fromstring(drawing)  # well-formed
    paths = [d for d in re.findall(r'<path d="([^"]*)"[^>]*var\(--series-0\)', drawing)]
    (line,) = [path for path in paths if path.count("L") + path.count("M") > 2]
    assert line.count("M") == 3  # two gaps make three pieces
    assert line.count("M") + line.count("L") == 8


def test_running_mean_of_a_constant_is_the_constant_from_the_first_point():
    assert running_mean([3.0] * 7, 5) == pytest.approx([3.0] * 7)
    assert running_mean([2.0, math.nan, 2.0], 5) == pytest.approx([2.0, 2.0, 2.0])
    rising = running_mean(list(map(float, range(100))), 5)
    assert rising == sorted(rising) and rising[-1] == pytest.approx(99 - 4, abs=0.1)  # it lags by window - 1
