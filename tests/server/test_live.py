"""A real server process with tiny trained models: used by the official client and raw sockets, and killed."""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
import scenarios
import torch
from live import Live, client_of, kill_rounds, random_model, wait_for
from openai import APIError

sys.path.append(str(Path(__file__).parent.parent / "stages"))
from world import MOODS, THINGS, World  # noqa: E402

from tutelage import cli  # noqa: E402
from tutelage.rewards.http import HTTPReward  # noqa: E402
from tutelage.runs.device import choose_device  # noqa: E402
from tutelage.runs.folder import load_policy  # noqa: E402


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The arguments of `serve` for a base model, a tuned one and a reward model, trained in seconds."""
    world = World(tmp_path_factory.mktemp("served")).make()
    return [str(world.base), f"chat={world.sft}", f"judge={world.reward}"]


@pytest.fixture(scope="session")
def live(runs: list[str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    server = Live(tmp_path_factory.mktemp("live"), *runs, "--recording", "on")
    yield server
    assert server.stop() == 0


@pytest.fixture(scope="session")
def clients(live: Live) -> scenarios.Clients:
    return scenarios.Clients(live.url + "/v1", live.key)


def test_there_are_enough_scenarios() -> None:
    assert len(scenarios.SCENARIOS) >= 100


@pytest.mark.parametrize("name", scenarios.SCENARIOS)
def test_the_official_client(name: str, clients: scenarios.Clients) -> None:
    scenarios.SCENARIOS[name](clients)


def together(count: int, work) -> None:
    """Run `work(0)` ... `work(count - 1)`, each in a thread."""
    threads = [threading.Thread(target=work, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def admin_key(live: Live) -> str:
    """Make a key while the server runs, as a person would."""
    command = [sys.executable, "-m", "tutelage", "keys", "make", "--scopes", "inference", "admin", "--data"]
    said = subprocess.run([*command, str(live.folder / "data")], capture_output=True, text=True, check=True).stdout
    return re.findall(r"sk-[\w-]{43}", said)[0]


def test_200_aborted_requests_and_then_one_that_answers(live: Live, clients: scenarios.Clients) -> None:
    body = {"model": "chat", "messages": scenarios.ASK, "stream": True, "n": 4}

    def abort(_: int) -> None:
        for _ in range(10):
            with httpx2.stream(
                "POST", live.url + "/v1/chat/completions", json=body, headers=bearer(live.key), timeout=60
            ) as answer:
                next(answer.iter_bytes(), None)

    together(20, abort)
    assert clients.chat(timeout=5).choices
    headers = bearer(admin_key(live))
    wait_for(lambda: "tutelage_active_streams 0.0" in httpx2.get(live.url + "/metrics", headers=headers).text, 2)


def test_a_chat_alone_equals_a_chat_in_a_crowd(clients: scenarios.Clients) -> None:
    """The same seed gives the same completion, whatever else runs."""

    def text(seed: int) -> str:
        return clients.chat(seed=seed, temperature=1.3).choices[0].message.content

    alone = [text(seed) for seed in range(6)]
    crowd: dict[int, str] = {}
    together(6, lambda seed: crowd.update({seed: text(seed)}))
    assert [crowd[seed] for seed in range(6)] == alone


def test_what_echo_tells_is_the_models_own(runs: list[str], clients: scenarios.Clients) -> None:
    """Compared with one forward pass of the saved model, without engine, cache or server."""
    model, tokenizer = load_policy(Path(runs[0]), choose_device("cpu", "auto"))
    ids = tokenizer.encode("Ann: is the cat red?\nBob: yes, it is red.")
    with torch.no_grad():
        logprobs = model(torch.tensor([ids]))[0].float().log_softmax(-1)
    settings = dict(model="base", prompt=ids, echo=True, logprobs=3, max_tokens=0)
    told = clients.lax.completions.create(**settings).choices[0].logprobs
    for place, token in enumerate(ids[1:]):
        assert told.token_logprobs[place + 1] == pytest.approx(float(logprobs[place, token]), abs=1e-4)
        likeliest = sorted(told.top_logprobs[place + 1].values(), reverse=True)[:3]
        assert likeliest == pytest.approx(logprobs[place].topk(3).values.tolist(), abs=1e-4)


def test_sums_over_an_echo_are_those_of_the_texts(runs: list[str], clients: scenarios.Clients) -> None:
    """As lm-eval asks and adds up: one more token is sampled, and the last entry cut off, whatever that token is."""
    model, tokenizer = load_policy(Path(runs[1].partition("=")[2]), choose_device("cpu", "auto"))
    texts = [(f"is the {thing} {mood}?", f" yes, it is {mood}.") for thing in THINGS for mood in MOODS]
    starts, ids = [len(tokenizer.encode(text)) for text, _ in texts], [tokenizer.encode(a + b) for a, b in texts]
    settings = dict(model="chat", prompt=ids, echo=True, logprobs=1, max_tokens=1, temperature=0)
    told = clients.lax.completions.create(**settings).choices
    ends = 0
    for start, text, choice in zip(starts, ids, told, strict=True):
        with torch.no_grad():
            logprobs = model(torch.tensor([text]))[0].float().log_softmax(-1)
        own = sum(float(logprobs[place - 1, text[place]]) for place in range(start, len(text)))
        assert sum(choice.logprobs.token_logprobs[start:-1]) == pytest.approx(own, abs=1e-3)
        ends += int(logprobs[-1].argmax()) in tokenizer.end_ids
    assert len(told) == 48 and ends > 10


def test_the_score_route_is_what_rl_runs_ask(live: Live, clients: scenarios.Clients) -> None:
    """Our HTTP scorer works with our server."""
    said = [[*scenarios.ASK, {"role": "assistant", "content": text}] for text in ("it is on the mat.", "no no no")]
    scores = HTTPReward(live.url + "/v1/scores#judge", live.key)(said)
    told = clients.lax.post("/scores", body={"model": "judge", "input": said}, cast_to=object)
    assert scores == [row["score"] for row in told["data"]] and scores[0] != scores[1]


def test_the_link_signs_in_and_strangers_stay_out(live: Live) -> None:
    with httpx2.Client(base_url=live.url) as browser:
        assert browser.get("/account", headers={"accept": "text/html"}).status_code == 303
        assert browser.get(live.link).status_code == 200  # not a navigation, so the link is not used up
        assert browser.get(live.link, headers={"sec-fetch-mode": "navigate"}).status_code == 303
        assert browser.get("/account").status_code == 200
        assert '"recording": {"allowed": true' in browser.get("/chat").text  # --recording on
        text = Path(live.log.name).read_text()
    assert live.link.rpartition("/")[2] not in text and '"route": "/signin/{token}", "status": 303' in text


def test_the_log_is_a_line_of_json_for_each_request(live: Live) -> None:
    said = [{"role": "user", "content": "known to us alone"}]
    answer = httpx2.post(
        live.url + "/v1/chat/completions", json={"model": "chat", "messages": said}, headers=bearer(live.key)
    )
    name = answer.headers["x-request-id"]
    wait_for(lambda: name in Path(live.log.name).read_text())
    text = Path(live.log.name).read_text()
    (line,) = [line for line in map(json.loads, text.splitlines()) if line.get("request_id") == name]
    used = answer.json()["usage"]
    assert (line["status"], line["model"], line["route"]) == (200, "chat", "/v1/chat/completions")
    assert (line["prompt_tokens"], line["completion_tokens"]) == (used["prompt_tokens"], used["completion_tokens"])
    assert "known to us alone" not in text and live.key not in text


@pytest.mark.parametrize(
    "words, told",
    [
        (("nowhere",), "nowhere: no such folder or file"),
        (("{base}", "base={chat}"), "a model named base is already served"),
        (("{base}", "--port", "1000000"), "--port 1000000: must be at most 65535"),
        (("{base}", "--host", "192.0.2.1"), "change --host or --port"),  # an address that no machine has
        (("{base}", "--database", "mysql://x/y"), "give a sqlite or postgresql URL"),
    ],
)
def test_what_cannot_be_served_is_one_line(runs: list[str], tmp_path: Path, capsys, words, told: str) -> None:
    places = {"base": runs[0], "chat": runs[1].partition("=")[2]}
    given = [word.format(**places) for word in words]
    with pytest.raises(SystemExit) as end:
        cli.main(["serve", *(["--port", "0"] if "--port" not in given else []), *given, "--data", str(tmp_path)])
    assert end.value.code == 2 and told in capsys.readouterr().err


def test_a_second_start_keeps_the_key_and_a_signal_ends_it_in_order(runs: list[str], tmp_path: Path) -> None:
    first = Live(tmp_path, *runs)
    key = first.key
    assert first.stop() == 0
    second = Live(tmp_path, *runs, "--no-access-log")
    stream = client_of(second, key).chat.completions.create(
        model="chat", messages=scenarios.ASK, stream=True, n=16, temperature=2, logit_bias={"5": -100}
    )
    next(iter(stream))
    ended = threading.Thread(target=second.stop)
    ended.start()
    with contextlib.suppress(APIError):  # "shutting down", unless the tiny model was faster than the signal
        for _ in stream:
            pass
    ended.join()
    assert second.process.returncode == 0
    assert (tmp_path / "serve.log").read_text() == ""  # the first start had no requests, the second logs none


SLOW = "{% if 'tortoise' in messages[0].content %}{% for i in range(90000) %}{% for j in range(9000) %}{% endfor %}"


@pytest.mark.slow
def test_a_template_that_does_not_end_stops_nobody(runs: list[str], tmp_path: Path) -> None:
    """Its conversation is refused, others are answered meanwhile, and a signal ends the server while it renders."""
    folder = tmp_path / "slow"
    shutil.copytree(runs[1].partition("=")[2], folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["chat_template"] = SLOW + "{% endfor %}{% endif %}" + settings["chat_template"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    server = Live(tmp_path, f"slow={folder}", *runs)
    client = client_of(server, server.key)
    ended: list[str] = []

    def ask(text: str, model: str = "slow") -> None:
        said = [{"role": "user", "content": text}]
        try:
            client.chat.completions.create(model=model, messages=said, max_tokens=2)
            ended.append(f"{model}: answered")
        except APIError as error:
            ended.append(str(error))

    slow = threading.Thread(target=ask, args=("tortoise",))
    slow.start()
    ask("hare", "chat")
    assert ended == ["chat: answered"]
    slow.join()
    assert "takes too long to render" in ended[1]
    ask("hare")
    assert ended[2] == "slow: answered"
    slow = threading.Thread(target=ask, args=("tortoise",))
    slow.start()
    time.sleep(0.5)
    began = time.monotonic()
    assert server.stop() == 0 and time.monotonic() - began < 12
    slow.join()


@pytest.mark.slow
def test_structured_output_tools_and_responses_with_the_official_client(tmp_path: Path) -> None:
    """The scenarios of the client matrix (`benchmarks/clients.py`), with the client that is installed here."""
    server = Live(tmp_path, f"model={random_model(tmp_path / 'run')}", "--context", "0", "--slots", "4")
    script = Path(__file__).parents[2] / "benchmarks" / "client_scenarios" / "openai_client.py"
    program = [sys.executable, str(script), server.url + "/v1", server.key, "model"]
    done = subprocess.run(program, capture_output=True, text=True, timeout=120)
    assert server.stop() == 0
    told = json.loads(done.stdout)["scenarios"]
    assert len(told) >= 25 and {name: trouble for name, trouble in told.items() if trouble} == {}


@pytest.mark.slow
def test_the_client_of_1_x(live: Live, tmp_path: Path) -> None:
    """The same scenarios with version 1 of the client, in a process whose path puts it first."""
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(tmp_path), "openai>=1.109,<2"]
    done = subprocess.run(install, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"the package index gives no openai 1.x: {done.stderr.strip()[-200:]}")
    program = [sys.executable, str(Path(scenarios.__file__)), live.url + "/v1", live.key]
    said = subprocess.run(program, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(tmp_path)})
    told = json.loads(said.stdout)
    assert told.pop("version").startswith("1.") and len(told) >= 100
    assert {name: trouble for name, trouble in told.items() if trouble} == {}


@pytest.mark.slow
def test_the_client_for_node(live: Live, tmp_path: Path) -> None:
    shutil.copy(Path(__file__).parent / "node_client.mjs", tmp_path)
    install = ["npm", "install", "--prefix", str(tmp_path), "--ignore-scripts", "--no-audit", "--no-fund", "openai@6"]
    if not shutil.which("npm") or subprocess.run(install, capture_output=True).returncode:
        pytest.skip("npm cannot install openai here")
    program = ["node", str(tmp_path / "node_client.mjs"), live.url + "/v1", live.key]
    done = subprocess.run(program, capture_output=True, text=True, timeout=120)
    told = json.loads(done.stdout)
    assert told.pop("version").startswith("6.") and len(told) >= 9
    assert {name: trouble for name, trouble in told.items() if trouble} == {}


@pytest.mark.slow
@pytest.mark.parametrize("kind, rounds", [("sqlite", 20), ("postgresql", 3)])
def test_kill_9_loses_no_acknowledged_completion(kind: str, rounds: int, runs: list[str], tmp_path, request) -> None:
    words = [*runs, *(["--database", request.getfixturevalue("postgresql").new_database()] if kind != "sqlite" else [])]
    acknowledged, lost = kill_rounds(tmp_path, words, rounds)
    assert acknowledged >= 5 * rounds and lost == 0


@pytest.mark.slow
def test_schemathesis_finds_nothing(live: Live, tmp_path: Path) -> None:
    """Thousands of requests at the edges of the schema, and sequences of calls, against a real process."""
    checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
    command = [
        str(Path(sys.executable).parent / "schemathesis"), "run", live.url + "/v1/openapi.json", "--checks", checks,
        "-H", f"Authorization: Bearer {admin_key(live)}", "--max-examples", "60", "--seed", "1",
        "--exclude-path-regex", "/v1/models/.+", "--suppress-health-check", "all",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=900)
    assert done.returncode == 0, done.stdout[-4000:]
