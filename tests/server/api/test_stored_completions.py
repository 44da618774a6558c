"""Stored completions: pages, and who may see them. Also limits of keys, scores, models, health and metrics."""

import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from live import wait_for
from starlette.testclient import TestClient

from tutelage.moderation.moderator import ModerationConfig, Moderator
from tutelage.server.text_work import TextWork
from tutelage.store.tables import Source, StoredCompletion, User
from tutelage.web.errors import ApiError
from tutelage.web.limits import Limits, duration

CHAT = "/v1/chat/completions"


@pytest.mark.parametrize("stream", [False, True])
def test_with_store_true_a_completion_is_stored_with_its_source(serving, ask, stream: bool) -> None:
    s = serving()
    s.client.post(CHAT, json=ask | {"stream": stream})
    s.client.post(CHAT, json=ask | {"stream": stream, "store": False})
    assert s.client.get(CHAT).json() == {
        "object": "list",
        "data": [],
        "first_id": None,
        "last_id": None,
        "has_more": False,
    }
    s.client.post(CHAT, json=ask | {"stream": stream, "store": True, "metadata": {"run": "1"}, "temperature": 0.5})
    page = s.client.get(CHAT).json()
    stored = page["data"][0]
    assert stored["choices"][0]["message"]["content"] == "the cat 你好"
    assert (stored["metadata"], stored["temperature"], stored["object"]) == ({"run": "1"}, 0.5, "chat.completion")
    with s.database.read() as session:
        row = session.query(StoredCompletion).one()
        assert session.get_one(Source, row.source_id).kind == "api"
    messages = s.client.get(f"{CHAT}/{stored['id']}/messages").json()["data"]
    assert [(m["role"], m["content"]) for m in messages] == [("user", "hello")]
    ends = [
        s.client.get(f"{CHAT}/{stored['id']}/messages", params={"after": stored["id"] + end}) for end in ("-0", "-1")
    ]
    assert ends[0].json()["data"] == [] and ends[1].status_code == 400


def test_a_key_may_store_by_default(serving, ask) -> None:
    s = serving()
    with s.database.write() as session:
        session.merge(s.key).store_default = True
    s.keys._cache.clear()
    s.client.post(CHAT, json=ask)
    s.client.post(CHAT, json=ask | {"store": False})
    assert len(s.client.get(CHAT).json()["data"]) == 1


def test_pages_hold_each_row_once_in_order(serving, ask) -> None:
    s = serving()
    made = [
        s.client.post(CHAT, json=ask | {"store": True, "metadata": {"odd": str(i % 2)}}).json()["id"] for i in range(7)
    ]
    for order, expected in (("asc", made), ("desc", made[::-1])):
        seen, after = [], None
        while True:
            page = s.client.get(CHAT, params={"limit": 3, "order": order} | ({"after": after} if after else {})).json()
            seen += [item["id"] for item in page["data"]]
            after = page["last_id"]
            if not page["has_more"]:
                break
        assert seen == expected
    odd = s.client.get(CHAT, params={"metadata[odd]": "1", "model": "stub"}).json()["data"]
    assert [item["id"] for item in odd] == made[1::2]
    assert s.client.get(CHAT, params={"model": "other"}).json()["data"] == []
    for name in ('a"b', "a\0", "$", "a.b", "'", "\\", "猫", "0"):
        made = s.client.post(CHAT, json=ask | {"store": True, "metadata": {name: "'\"猫"}}).json()["id"]
        found = s.client.get(CHAT, params={f"metadata[{name}]": "'\"猫"}).json()["data"]
        assert [item["id"] for item in found] == [made], name
        assert s.client.get(CHAT, params={f"metadata[{name}]": "x"}).json()["data"] == []


def test_metadata_change_and_rows_go(serving, ask) -> None:
    s = serving()
    name = s.client.post(CHAT, json=ask | {"store": True}).json()["id"]
    assert s.client.post(f"{CHAT}/{name}", json={"metadata": {"a": "b"}}).json()["metadata"] == {"a": "b"}
    assert s.client.get(f"{CHAT}/{name}").json()["metadata"] == {"a": "b"}
    assert s.client.delete(f"{CHAT}/{name}").json() == {
        "object": "chat.completion.deleted",
        "id": name,
        "deleted": True,
    }
    assert s.client.get(f"{CHAT}/{name}").status_code == 404


def test_people_see_only_their_own_stored_completions(serving, ask) -> None:
    s = serving()
    name = s.client.post(CHAT, json=ask | {"store": True}).json()["id"]
    with s.database.write() as session:
        session.add(User(id="usr_other", name="other"))
    _, secret = s.keys.make("usr_other", "other")
    other = TestClient(s.app, headers={"authorization": f"Bearer {secret}"})
    assert other.get(CHAT).json()["data"] == []
    for method in ("get", "delete"):
        assert getattr(other, method)(f"{CHAT}/{name}").status_code == 404
    assert other.post(f"{CHAT}/{name}", json={"metadata": {}}).status_code == 404
    assert other.get(f"{CHAT}/{name}/messages").status_code == 404
    assert s.client.get(f"{CHAT}/{name}").status_code == 200


def test_requests_a_minute(serving) -> None:
    client = serving(key={"requests_per_minute": 3}).client
    answers = [client.get("/v1/models") for _ in range(5)]
    assert [response.status_code for response in answers] == [200, 200, 200, 429, 429]
    assert [r.headers["x-ratelimit-remaining-requests"] for r in answers] == ["2", "1", "0", "0", "0"]
    error = answers[3].json()["error"]
    assert (error["type"], error["code"]) == ("requests", "rate_limit_exceeded")
    assert 0 < int(answers[3].headers["retry-after"]) <= 61


def test_tokens_are_set_aside_and_given_back(serving, ask, tokenizer) -> None:
    s = serving(key={"tokens_per_minute": 100})
    used = s.client.post(CHAT, json=ask | {"max_tokens": 30}).json()["usage"]["total_tokens"]
    left = int(s.client.get("/v1/models").headers["x-ratelimit-remaining-tokens"])
    assert 100 - used <= left <= 100 - used + 5  # the bucket has refilled a little
    assert s.client.post(CHAT, json=ask | {"n": 4, "max_tokens": 30}).status_code == 429
    for _ in range(10):
        response = s.client.post(CHAT, json=ask | {"max_tokens": 30})
        if response.status_code == 429:
            break
    assert response.json()["error"]["type"] == "tokens"


def test_a_bucket_refills() -> None:
    limits, key = Limits(), type("Key", (), {"id": "k", "tokens_per_minute": 6000, "concurrent": 1})()
    with limits.generation(key, 6000) as spent:
        spent.tokens = 6000
    left = limits._buckets["k"].left
    time.sleep(0.05)
    assert 4 <= limits._bucket(key).left - left <= 30  # 100 per second
    assert [duration(s) for s in (0.012, 1.5, 360)] == ["12ms", "1.5s", "6m0s"]


def test_retry_after_is_at_most_what_a_client_waits() -> None:
    limits, key = Limits(), type("Key", (), {"id": "k", "tokens_per_minute": 100, "concurrent": 1})()
    with limits.generation(key, 5_000) as spent:
        spent.tokens = 5_000
    with pytest.raises(ApiError) as refused, limits.generation(key, 100):
        pass
    assert refused.value.headers and int(refused.value.headers["retry-after"]) <= 120


def test_at_once(serving, ask) -> None:
    s = serving("a b c d e f g h", key={"concurrent": 1}, pause=0.02)
    with s.app.state.limits.generation(s.key, 1):
        response = s.client.post(CHAT, json=ask)
    assert (response.status_code, response.json()["error"]["type"]) == (429, "concurrency")
    assert s.client.post(CHAT, json=ask).status_code == 200


def test_a_revoked_key_is_refused_at_once(serving) -> None:
    s = serving()
    assert s.client.get("/v1/models").status_code == 200
    s.keys.revoke(s.key.id)
    assert s.client.get("/v1/models").status_code == 401


def test_a_key_revoked_by_another_process_is_refused_within_a_second(serving) -> None:
    s = serving()
    assert s.client.get("/v1/models").status_code == 200
    type(s.keys)(s.database, b"x").revoke(s.key.id)
    time.sleep(1.05)
    assert s.client.get("/v1/models").status_code == 401


def test_scores_and_models(serving) -> None:
    s = serving()
    said = [
        [{"role": "user", "content": "x"}, {"role": "assistant", "content": answer}] for answer in ("four", "two!!!")
    ]
    assert s.client.post("/v1/scores", json={"model": "judge", "input": said}).json() == {
        "object": "list",
        "model": "judge",
        "data": [{"index": 0, "score": 4.0}, {"index": 1, "score": 6.0}],
    }
    listed = s.client.get("/v1/models").json()
    assert listed["object"] == "list" and [model["id"] for model in listed["data"]] == ["stub", "judge"]
    assert s.client.get("/v1/models/judge").json()["object"] == "model"


def test_scores_are_within_the_keys_limits_and_wait_without_a_thread(serving, ask) -> None:
    said = [[{"role": "user", "content": "cat " * 20}, {"role": "assistant", "content": "mat " * 20}]]
    s = serving(key={"tokens_per_minute": 100, "concurrent": 60})
    codes = [s.client.post("/v1/scores", json={"model": "judge", "input": said}).status_code for _ in range(4)]
    assert codes[0] == 200 and codes[-1] == 429
    s = serving(key={"concurrent": 60})
    go, score, running = threading.Event(), s.app.state.registry.score, []

    def slow(*asked):
        running.append(1)
        assert go.wait(20)
        return score(*asked)

    s.app.state.registry.score = slow
    with s.client, ThreadPoolExecutor(61) as pool:  # one event loop, more requests than its threads
        body = {"model": "judge", "input": said}
        waiting = [pool.submit(s.client.post, "/v1/scores", json=body) for _ in range(60)]
        wait_for(lambda: s.app.state.limits._running.get(s.key.id) == 60)
        assert s.client.post("/v1/scores", json=body).json()["error"]["type"] == "concurrency"
        assert s.client.post("/v1/moderations", json={"input": "x"}).status_code == 200 and running == [1]
        go.set()
        assert [future.result().status_code for future in waiting] == [200] * 60


def test_loading_models_and_metrics_take_an_admin(serving, ask) -> None:
    s = serving(key={"scopes": ("inference",)})
    assert s.client.get("/metrics").status_code == 403
    assert s.client.post("/v1/models", json={"run": "x"}).status_code == 403
    assert s.client.delete("/v1/models/stub").status_code == 403
    s = serving()
    s.client.post(CHAT, json=ask)
    text = s.client.get("/metrics").text
    assert 'tutelage_tokens_total{kind="completion",model="stub"}' in text
    assert 'tutelage_requests_total{route="/v1/chat/completions",status="200"}' in text
    assert "tutelage_db_write_wait_seconds_count" in text and "tutelage_ttft_seconds_count" in text
    assert "hello" not in text and s.key.id not in text
    assert 0 < number(text, "tutelage_disk_free_bytes") <= shutil.disk_usage(s.database.folder).total


def number(metrics: str, name: str) -> float:
    """One value of /metrics; 0 if it is not there yet."""
    return next((float(line.rpartition(" ")[2]) for line in metrics.splitlines() if line.startswith(name + " ")), 0.0)


def test_the_metrics_count_the_time_between_tokens_and_what_was_flagged(serving, ask, tmp_path) -> None:
    s = serving("the cat 你好", pause=0.01)
    (tmp_path / "terms.txt").write_text("[hate]\nthe cat\n[violence]\nhello\n", encoding="utf-8")
    config = ModerationConfig(terms=tmp_path / "terms.txt", builtin_terms=False, blocked=("violence",))
    s.app.state.text_work = TextWork(Moderator(config))
    names = [
        "tutelage_inter_token_seconds_count", "tutelage_inter_token_seconds_sum",
        *(f'tutelage_moderation_flags_total{{category="{category}",side="{side}"}}'
          for category in ("hate", "violence") for side in ("input", "output")),
    ]  # fmt: skip

    def counted() -> list[float]:
        text = s.client.get("/metrics").text
        return [number(text, name) for name in names]

    before = counted()
    asked = {"model": "stub", "messages": [{"role": "user", "content": "who is there, and who?"}]}
    tokens = s.client.post(CHAT, json=asked).json()["usage"]["completion_tokens"]  # flagged as hate, and shown
    stream = s.client.post(CHAT, json=ask | {"stream": True})  # refused: hello
    assert "content_filter" in stream.text
    gaps, seconds, *flags = (now - then for now, then in zip(counted(), before, strict=True))
    assert gaps == tokens - 1 and 0.01 * gaps <= seconds < 5 and flags == [0, 1, 1, 0]


def test_many_who_ask_whether_it_is_ready_write_once_a_second(serving, monkeypatch) -> None:
    s, writes = serving(), []
    ping = s.database.ping
    monkeypatch.setattr(s.database, "ping", lambda: (writes.append(time.sleep(0.1)), ping()))
    with TestClient(s.app) as stranger, ThreadPoolExecutor(60) as pool:
        asked = [pool.submit(stranger.get, "/readyz") for _ in range(200)]
        assert {future.result().status_code for future in asked} == {200}
        assert len(writes) <= 2


def test_health(serving, monkeypatch) -> None:
    s = serving()
    stranger = TestClient(s.app)
    assert stranger.get("/healthz").json() == stranger.get("/health").json() == {"status": "ok"}
    assert stranger.get("/readyz").json() == {"status": "ready", "problems": []}
    s.app.state.registry.served["stub"].engine.failing = True
    assert stranger.get("/readyz").json()["status"] == "ready"  # cached
    monkeypatch.setattr("tutelage.server.health.FRESH_SECONDS", 0.0)
    wait_for(lambda: stranger.get("/readyz").json()["problems"] == ["a model fails on every request"])
    s.app.state.registry.served.clear()
    response = stranger.get("/readyz")
    assert (response.status_code, response.json()["problems"]) == (503, ["no model is loaded"])
    s.database.engine.dispose()
    with s.database.engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE settings")
    assert "the database does not accept writes (StorageError)" in stranger.get("/readyz").json()["problems"]
