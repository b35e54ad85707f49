"""The judge: questions in both orders, a stub endpoint that fails in many ways, limits, resuming, wins and losses."""

import json
import multiprocessing
import os
import re
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

import judge as entry
from evaluated_runs import write_evaluation
from evaluation.judging import endpoint as endpoint_module
from evaluation.judging.endpoint import _retry_after
from evaluation.judging.outcome import Judged, outcome, position_bias
from evaluation.judging.questions import Question, read_verdict
from runtime.exit_codes import STOPPED, WRONG_INPUT

KEY = "sk-very-secret-123"
TOKENS = 100  # of each reply


class Stub:
    """An OpenAI-compatible server. answer: of the number of the call and the text of the question -> the reply's text,
    a status, or (status, headers, body); by default the answer with "good" in it wins. It waits at call `hang`."""

    def __init__(self, answer=None, hang=None):
        self.requests, self.lock, self.answer, self.hang = [], threading.Lock(), answer or prefers_good, hang
        self.running = self.most_running = 0
        stub = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with stub.lock:
                    stub.requests.append((self.path, dict(self.headers), request))
                    number = len(stub.requests)
                    stub.running += 1
                    stub.most_running = max(stub.most_running, stub.running)
                if stub.hang is not None and number >= stub.hang:
                    time.sleep(600)
                answer = stub.answer(number, request["messages"][1]["content"])
                with stub.lock:
                    stub.running -= 1
                self.reply(
                    *(
                        answer
                        if isinstance(answer, tuple)
                        else (answer, {}, "no")
                        if isinstance(answer, int)
                        else (200, {}, completion(answer))
                    )
                )

            def reply(self, status, headers, body):
                self.send_response(status)
                for name, value in {"Content-Length": str(len(body.encode())), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body.encode())

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self.thread.start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server.server_port}/v1"

    def close(self):
        self.server.shutdown()
        self.server.server_close()


def completion(text, **usage):
    return json.dumps({"choices": [{"message": {"content": text}}], "usage": usage or {"total_tokens": TOKENS}})


def prefers_good(number, question):
    first, second = ("good" in answer for answer in re.findall(r"<answer \d>\n(.*?)\n</answer", question, re.DOTALL))
    return f"Because.\n**Verdict: {'tie' if first == second else 1 if first else 2}**"


@pytest.fixture
def stub(monkeypatch):
    """Starts a stub and points the judge to it."""
    started = []

    def start(answer=None, hang=None):
        started.append(Stub(answer, hang))
        monkeypatch.setenv("JUDGE_URL", started[-1].url)
        return started[-1]

    monkeypatch.setenv("JUDGE_MODEL", "judge-1")
    monkeypatch.setenv("JUDGE_API_KEY", KEY)
    monkeypatch.setattr(endpoint_module, "FIRST_PAUSE", 0.002)
    yield start
    for server in started:
        server.close()


@pytest.fixture
def runs(tmp_path):
    """Two evaluated runs: 6 examples, 2 seeds; b is good in 4 of them, a in 1, the last answers are the same."""
    texts = {"a": ["bad"] * 4 + ["good", "same"], "b": ["good one"] * 4 + ["bad", "same"]}
    return [
        str(write_evaluation(tmp_path / run, "dolly", of_run, lambda _: [1.0] * 6)) for run, of_run in texts.items()
    ]


@pytest.fixture
def judge(tmp_path, capsys, runs):
    def run(*words, code=0):
        ended = 0
        try:
            entry.main([*runs, *map(str, words), "--save-dir", str(tmp_path / "out")])
        except SystemExit as end:
            ended = end.code
        out, err = capsys.readouterr()
        assert ended == code, out + err
        return out + err

    return run


def replies(tmp_path):
    return [json.loads(line) for line in (tmp_path / "out/replies.jsonl").read_text().splitlines()]


def judgement(tmp_path):
    return json.loads((tmp_path / "out/judgement.json").read_text())


# --- questions and verdicts ------------------------------------------------------------------------------------------


def test_both_orders_are_asked_and_the_better_run_wins(stub, judge, tmp_path):
    server = stub()
    out = judge()
    assert "judge-1 at" in out and "24 questions, 4 of them with identical answers, 0 answered already" in out
    assert "average     16.7  16.7    66.7" in out
    assert re.search(r"b - a  \+50\.00 \[.*\]  p = \S+  wins 4 ties 1 losses 1", out)
    assert "12 comparisons of two verdicts; 0 left out" in out and "0.0 % of the comparisons flip" in out
    assert len(server.requests) == 20 and f"cost: 20 replies, {20 * TOKENS:,} tokens" in out
    path, headers, request = server.requests[0]
    assert (path, headers["Authorization"]) == ("/v1/chat/completions", f"Bearer {KEY}")
    assert (request["model"], request["temperature"], request["max_tokens"]) == ("judge-1", 0, 512)
    asked = [request["messages"][1]["content"] for *_, request in server.requests]
    assert sum("<answer 1>\nbad\n</answer 1>\n\n<answer 2>\ngood one" in text for text in asked) == 8
    assert sum("<answer 1>\ngood one\n</answer 1>\n\n<answer 2>\nbad" in text for text in asked) == 8
    assert all("<request>\nSay red" in text and "<reference>\nred\n" in text for text in asked)
    found = judgement(tmp_path)
    assert found["shares"]["dolly"] == pytest.approx({"wins": 100 / 6, "ties": 100 / 6, "losses": 400 / 6})
    assert found["pairs"][0]["results"]["average"]["difference"] == pytest.approx(50)
    assert (found["calls"], found["tokens"], found["comparisons"]) == (20, 20 * TOKENS, 12)


def test_a_judge_that_likes_the_first_answer_decides_nothing(stub, judge, tmp_path):
    stub(lambda *_: "Verdict: 1")
    assert "100.0 % of the comparisons flip with the order; verdicts for the first answer 100.0 %" in judge()
    found = judgement(tmp_path)
    assert found["shares"]["average"] == {"wins": 0, "ties": 100, "losses": 0}
    assert found["pairs"][0]["results"]["average"]["difference"] == 0


def test_seeds_rows_and_options_are_chosen(stub, judge, tmp_path):
    server = stub()
    options = '{"max_tokens": null, "max_completion_tokens": 9}'
    judge("--seeds", 20, "--eval-num", 2, "--judge-options", options)
    assert len(server.requests) == 4 and {record["seed"] for record in replies(tmp_path)} == {20}
    assert {record["row"] for record in replies(tmp_path)} == {1, 2}
    assert {"max_tokens", "max_completion_tokens"} & server.requests[0][2].keys() == {"max_completion_tokens"}
    assert "no seed of which both runs have the answers to dolly (a: 10 20; b: 10 20)" in judge("--seed", 3, code=2)


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        ("Verdict: 1", "first"),
        ("Answer 1 has it.\n\n**Verdict:** 2.\n", "second"),
        ("verdict - Tie", "tie"),
        ("Verdict: 1\nOn second thought, no.", None),
        ("Verdict: 12", None),
        ("Verdict: 1 or 2", None),
        ("", None),
    ],
)
def test_the_last_line_is_the_verdict(reply, verdict):
    assert read_verdict(reply) == verdict


def test_seeds_are_pooled_and_contradictions_are_ties():
    def asked(row, seed, verdicts, asked=True):
        question = ("s", seed, row)
        texts = "p", ("r",), ("x", "y")
        return [Judged(Question(*question, run, *texts), of, asked) for run, of in zip("ab", verdicts)]

    judged = [
        *asked(1, 10, ["first", "second"]),  # a in both orders
        *asked(1, 20, ["first", "tie"]),  # a in one
        *asked(2, 10, ["first", "first"]),  # the order decided
        *asked(2, 20, ["second", "first"]),  # b
        *asked(3, 10, ["tie", "tie"], False),  # identical
        *asked(3, 20, ["first", None]),
        *asked(4, 10, ["first", "second"])[:1],  # half of it is judged
    ]
    found = outcome(judged, "ab")
    assert found.scores["a"]["s"].tolist() == [100, 25, 50] and found.scores["b"]["s"].tolist() == [0, 75, 50]
    assert found.shares["s"] == pytest.approx((100 / 3, 50, 100 / 6)) and found.shares["average"] == found.shares["s"]
    assert (found.comparisons, found.unreadable) == (5, 1)
    assert position_bias(judged) == pytest.approx({"flips": 25, "first": 62.5, "second": 25, "tie": 12.5})
    assert outcome(judged[-1:], "ab") is None and position_bias(judged[-1:]) is None


# --- failures --------------------------------------------------------------------------------------------------------


def test_failures_that_pass_are_tried_again(stub, judge, tmp_path, monkeypatch):
    """429 with and without Retry-After, 500, a reply that is no chat completion, a connection that breaks."""
    waited, wait = [], threading.Event.wait

    def note(event, pause=None):
        """Of the threads that ask; others, such as a monitor of progress bars, wait as ever."""
        asks = pause is not None and threading.current_thread().name.startswith("ThreadPoolExecutor")
        return waited.append(pause) if asks else wait(event, pause)

    monkeypatch.setattr(threading.Event, "wait", note)
    failures = {
        1: (429, {"Retry-After": "7"}, "slow down"),
        2: 500,
        3: (200, {}, "<html>"),
        4: (200, {}, json.dumps({"choices": []})),
        5: (200, {"Content-Length": "999"}, "cut"),
        6: 503,
    }
    server = stub(lambda number, text: failures.get(number) or prefers_good(number, text))
    judge("--parallel", 1)
    assert len(server.requests) == 20 + len(failures) and len(replies(tmp_path)) == 20
    asked = [request["messages"] for *_, request in server.requests]
    assert all(again == asked[0] for again in asked[:7]), "the same question until there is a reply"
    assert waited[0] == 7 and len(waited) == len(failures)
    for attempt, pause in enumerate(waited[1:], start=1):
        assert 0.5 <= pause / (endpoint_module.FIRST_PAUSE * 2**attempt) <= 1


def test_an_endpoint_that_does_not_recover_stops_the_judge(stub, judge, tmp_path):
    server = stub(lambda number, text: prefers_good(number, text) if number <= 4 else 500)
    out = judge("--parallel", 1, code=STOPPED)
    assert re.search(r"error: http://\S+: HTTP 500 .*: no \(7 tries\)", out) and len(server.requests) == 4 + 7
    assert len(replies(tmp_path)) == judgement(tmp_path)["calls"] == 4, "what is there is reported"
    server.answer = prefers_good
    assert "4 answered already" in judge()
    assert len(server.requests) == 4 + 7 + 16


def test_a_long_pause_is_not_waited_for(stub, judge):
    server = stub(lambda *_: (429, {"Retry-After": "86400"}, "tomorrow"))
    assert "HTTP 429 Too Many Requests: tomorrow, and asks to wait 86400 seconds" in judge(
        "--parallel", 1, code=STOPPED
    )
    assert len(server.requests) == 1


def test_retry_after_may_be_a_date():
    assert _retry_after("Fri, 01 Jan 2100 00:00:00 GMT") > 1e9
    assert (_retry_after("Mon, 01 Jan 2001 00:00:00 GMT"), _retry_after("soon"), _retry_after(None)) == (0, None, None)


@pytest.mark.parametrize("status", [400, 401, 404, 302])
def test_a_refused_request_is_not_repeated(stub, judge, status):
    elsewhere = stub()
    server = stub(lambda *_: (status, {"Location": f"{elsewhere.url}/x"}, f"your key {KEY} is wrong"))
    out = judge("--parallel", 1, code=WRONG_INPUT)
    assert f"HTTP {status} " in out and "check JUDGE_URL, JUDGE_MODEL, JUDGE_API_KEY and --judge-options" in out
    assert "your key *** is wrong" in out and KEY not in out
    assert len(server.requests) == 1 and not elsewhere.requests, "no other host gets the key"


def test_a_reply_without_a_verdict_is_asked_for_again_and_left_out(stub, judge, tmp_path):
    def answer(number, text):
        return "I cannot say." if "Say red, 2." in text else prefers_good(number, text)

    server = stub(answer)
    out = judge()
    assert "10 comparisons of two verdicts; 2 left out, without a verdict" in out
    assert len(server.requests) == 16 + 4 * 3
    assert "20 answered already" in judge() and len(server.requests) == 16 + 4 * 3
    assert judgement(tmp_path)["unreadable"] == 2


# --- limits and resuming ---------------------------------------------------------------------------------------------


def test_a_limit_of_calls_stops_and_a_higher_one_goes_on(stub, judge, tmp_path):
    server = stub()
    out = judge("--max-calls", 0, code=STOPPED)
    assert not server.requests and "20 questions are open; raise the limit to go on" in out
    out = judge("--max-calls", 7, code=STOPPED)
    assert len(server.requests) == 7 and "13 questions are open" in out and "cost: 7 replies, 700 tokens" in out
    assert judgement(tmp_path)["comparisons"] == 3 + 2, "of both orders, and the identical ones"
    judge("--max-calls", 7, code=STOPPED)
    assert len(server.requests) == 7
    judge("--max-calls", 20)
    assert len(server.requests) == 20 and judgement(tmp_path)["comparisons"] == 12


def test_a_limit_of_tokens(stub, judge):
    server = stub()
    judge("--max-total-tokens", 250, "--parallel", 1, code=STOPPED)
    assert len(server.requests) == 3
    server.answer = lambda *_: (200, {}, completion("Verdict: 1", prompt_tokens=3))
    said = "--max-total-tokens 400: the endpoint does not say how many it used; limit the --max-calls"
    assert said in judge("--max-total-tokens", 400, "--parallel", 1, code=WRONG_INPUT)
    assert "cost: 20 replies, unknown tokens" in judge()


def test_calls_run_beside_each_other(stub, judge):
    def slow(number, text):
        time.sleep(0.05)
        return prefers_good(number, text)

    server = stub(slow)
    judge("--parallel", 3)
    assert server.most_running == 3


def test_other_answers_or_another_judge_are_asked_again(stub, judge, tmp_path, monkeypatch):
    server = stub()
    judge()
    write_evaluation(tmp_path / "a", "dolly", ["other"] + ["bad"] * 3 + ["good", "same"], lambda _: [1.0] * 6)
    judge()
    assert len(server.requests) == 24
    monkeypatch.setenv("JUDGE_MODEL", "judge-2")
    assert "0 answered already" in judge()
    assert len(server.requests) == 44


def judge_in_background(words, log):
    with log.open("w", buffering=1) as file:
        sys.stdout = sys.stderr = file
        entry.main(words)


def test_a_kill_costs_no_reply_twice(stub, judge, runs, tmp_path):
    """Killed while a call is running, and as if in the middle of writing a line."""
    server, log = stub(hang=9), tmp_path / "log"
    words = [*runs, "--save-dir", str(tmp_path / "out"), "--parallel", "1"]
    process = multiprocessing.get_context("fork").Process(target=judge_in_background, args=(words, log))
    process.start()
    deadline = time.monotonic() + 60
    while len(server.requests) < 9 and process.is_alive() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    process.join()
    assert len(server.requests) == 9 and len(replies(tmp_path)) == 8, log.read_text()
    with (tmp_path / "out/replies.jsonl").open("a") as file:
        file.write('{"key": "0123')
    server.hang = None
    out = judge()
    assert "8 answered already" in out and len(server.requests) == 9 + 12
    assert len(replies(tmp_path)) == 20 and judgement(tmp_path)["comparisons"] == 12
    everything = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"judge-1 at" in everything, "the log of the killed one is there too"
    assert KEY not in out and KEY.encode() not in everything


def test_one_judge_at_a_time(stub, judge, tmp_path):
    stub()
    holder = (
        "import sys; from pathlib import Path; from runtime.locks import lock\n"
        "held = lock(Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", holder, str(tmp_path / "out/.judge.lock")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout.readline() == b"held\n"
        assert "another process judges there (host" in judge(code=WRONG_INPUT)
        process.stdin.close()


# --- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variables", "words", "said"),
    [
        ({"JUDGE_URL": ""}, (), "error: JUDGE_URL: set it to the endpoint, such as http://localhost:8000/v1"),
        ({"JUDGE_URL": "file:///etc/passwd"}, (), "JUDGE_URL file:///etc/passwd: set it to the endpoint"),
        ({"JUDGE_URL": f"http://me:{KEY}@host/v1"}, (), "JUDGE_URL: it holds a key or a query"),
        ({"JUDGE_URL": f"http://host/v1?key={KEY}"}, (), "JUDGE_URL: it holds a key or a query"),
        ({"JUDGE_MODEL": ""}, (), "JUDGE_MODEL: set it to the name"),
        ({"JUDGE_API_KEY": f"{KEY} x"}, (), "JUDGE_API_KEY: it holds a space"),
        ({}, ("--judge-options", "[1]"), "--judge-options [1]: pass a JSON object"),
        ({}, ("third",), "pass two, whose answers the judge compares"),
        ({}, ("--parallel", "0"), "--parallel 0: pass a number of at least 1"),
    ],
)
def test_mistakes(stub, judge, monkeypatch, variables, words, said):
    stub()
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    out = judge(*words, code=WRONG_INPUT)
    assert said in out and KEY not in out
