"""Authentication: routes are closed unless public; links, sessions, passwords, keys and origins."""

import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from fastapi.routing import iter_route_contexts
from starlette.routing import Mount
from starlette.testclient import TestClient

from tutelage.store.tables import SignInLink, User, WebSession
from tutelage.web import people
from tutelage.web.auth import PUBLIC, PUBLIC_BELOW
from tutelage.web.errors import OUTSIDE_V1, is_api

GOING = {"sec-fetch-mode": "navigate"}  # a browser's navigation


def every_route(app) -> list[tuple[str, str]]:
    """(method, path) of every route and mount, with parameters filled in."""
    found = [("GET", route.path + "/x") for route in app.routes if isinstance(route, Mount)]
    for route in iter_route_contexts(app.routes):
        if getattr(route, "methods", None):
            path = re.sub(r"\{[^}]*\}", "x", route.path)
            found += [(method, path) for method in sorted(route.methods - {"HEAD"})]
    return found


def test_every_route_that_is_not_public_refuses_a_stranger(site) -> None:
    routes = every_route(site.app)
    assert len(routes) > 8
    for forged in (
        {},
        {"authorization": "Bearer sk-guess"},
        {"cookie": "tutelage=guess"},
        {"authorization": "Basic x"},
    ):
        client = TestClient(site.app, headers=forged, follow_redirects=False)
        for method, path in routes:
            response = client.request(method, path)
            if path in PUBLIC or path.startswith(PUBLIC_BELOW):
                assert response.status_code != 401 or path == "/login", (method, path)
            else:
                assert response.status_code == 401, (method, path, forged)
                assert response.json()["error"]["code"] in ("invalid_api_key", "not_signed_in")


def test_the_public_doors_are_few() -> None:
    assert PUBLIC | set(PUBLIC_BELOW) == {"/healthz", "/health", "/readyz", "/login", "/static/", "/signin/"}


@pytest.mark.parametrize("path", ["/nowhere", "/v1/nowhere", "/v2/models", "/static", "/signin", "/v1", "/healthz/x"])
def test_an_unknown_address_tells_a_stranger_nothing(site, path: str) -> None:
    assert TestClient(site.app).get(path).status_code == 401


def test_a_program_without_v1_in_its_url_is_told_so(site, browser) -> None:
    """With a key on every path that does not exist, without one on the API's own. Browsers are sent to sign in."""
    _, secret = site.keys.make(site.owner.id, "k")
    known = [("POST", "/chat/completions"), ("GET", "/chat/completions"), ("DELETE", "/chat/completions/x"),
             ("POST", "/completions"), ("GET", "/models"), ("GET", "/models/a/b"), ("GET", "/completions")]  # fmt: skip
    unknown = [("POST", "/embeddings"), ("POST", "/api/v1/chat/completions"), ("POST", "/chat"), ("GET", "/nowhere")]
    with_key, without = TestClient(site.app, headers={"authorization": f"Bearer {secret}"}), TestClient(site.app)
    for method, path in known + unknown:
        response = with_key.request(method, path)
        assert (response.status_code, response.json()["error"]["code"]) == (404, "unknown_url"), (method, path)
        message = response.json()["error"]["message"]
        assert "address + /v1." in message and (f"{method} /v1{path}?" in message) == ("/v1/" not in path)
        assert without.request(method, path).status_code == (404 if (method, path) in known else 401), (method, path)
        if method == "GET":
            assert browser(None).get(path).headers["location"] == f"/login?next={path}"
    assert with_key.get("/v1/nowhere").json()["error"]["message"] == "Invalid URL (GET /v1/nowhere)"
    assert all(without.get(path).status_code == 401 for path in OUTSIDE_V1 - {"/tokenize", "/detokenize"})


def test_a_key_without_the_scope_opens_nothing_and_a_key_opens_no_page(site) -> None:
    _, secret = site.keys.make(site.owner.id, "none", scopes=())
    client = TestClient(site.app, headers={"authorization": f"Bearer {secret}"}, follow_redirects=False)
    for method, path in every_route(site.app):
        if is_api(path) and path not in ("/v1/openapi.json", "/metrics"):
            assert client.request(method, path).status_code == 403, (method, path)
        elif path not in PUBLIC and not is_api(path) and not path.startswith(PUBLIC_BELOW):
            assert client.request(method, path).status_code == 401, (method, path)


def test_every_change_on_a_page_asks_for_the_token(site, browser) -> None:
    client = browser("admin")
    own = [
        (m, p) for m, p in every_route(site.app) if p not in PUBLIC and not (is_api(p) or p.startswith(PUBLIC_BELOW))
    ]
    changes = [(method, path) for method, path in own if method != "GET"]
    assert changes
    for method, path in changes:
        for headers in ({}, {"x-csrf-token": "guess"}):
            response = client.request(method, path, headers=headers)
            assert response.status_code == 403, (method, path)


def test_another_site_changes_nothing(site, browser, csrf) -> None:
    client = browser("admin")
    form = {"csrf": csrf(client), "name": "eve", "role": "admin"}
    for headers in (
        {"origin": "http://evil.example"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"origin": "null"},
    ):
        assert client.post("/people", data=form, headers=headers).status_code == 403
    assert client.post("/people", data=form, headers={"origin": "http://testserver"}).status_code == 200
    stranger = browser(None)
    assert stranger.post("/login", data={}, headers={"origin": "http://evil.example"}).status_code == 403


def test_a_link_works_once_and_not_for_ever(site, browser) -> None:
    token = people.make_link(site.database, site.owner.id)
    client = browser(None)
    assert client.get("/account").headers["location"] == "/login?next=/account"
    assert client.get(f"/signin/{token}", headers=GOING).status_code == 303
    assert client.get("/account").status_code == 200
    assert client.get(f"/signin/{token}", headers=GOING).status_code == 404
    token = people.make_link(site.database, site.owner.id)
    with site.database.write() as session:
        session.query(SignInLink).update({"expires_ms": 1})
    assert client.get(f"/signin/{token}", headers=GOING).status_code == 404


def test_a_preview_or_a_prefetch_does_not_use_a_link_up(site, browser) -> None:
    path = f"/signin/{people.make_link(site.database, site.owner.id)}"
    for headers in ({}, {"sec-fetch-mode": "no-cors"}, GOING | {"sec-purpose": "prefetch;prerender"}):
        shown = browser(None).get(path, headers=headers)
        assert shown.status_code == 200 and "set-cookie" not in shown.headers
        assert f'<form method="post" action="{path}">' in shown.text
    person = browser(None)
    assert person.post(path, headers={"origin": "http://evil.example"}).status_code == 403
    assert person.post(path).status_code == 303
    assert person.get("/account").status_code == 200
    assert browser(None).post(path).status_code == 404


def test_signing_out_and_an_old_session_end_it(site, browser, csrf) -> None:
    client = browser("user")
    cookie = client.cookies["tutelage"]
    assert client.post("/logout", data={"csrf": csrf(client)}).status_code == 303
    assert client.get("/account", headers={"cookie": f"tutelage={cookie}"}).status_code == 303
    client = browser("user")
    with site.database.write() as session:
        session.query(WebSession).update({"expires_ms": 1})
    assert client.get("/account").status_code == 303


def test_the_database_holds_no_secret(site, browser) -> None:
    client = browser("user")
    _, secret = site.keys.make(site.owner.id, "k")
    link = people.make_link(site.database, site.owner.id)
    site.database.close()
    content = b"".join(path.read_bytes() for path in site.folder.glob("t.db*"))
    assert b"sign_in_links" in content
    for hidden in (client.cookies["tutelage"], secret, link):
        assert hidden.encode() not in content


def test_an_invited_person_chooses_a_password_and_signs_in_with_it(site, browser, csrf) -> None:
    admin = browser("admin")
    page = admin.post("/people", data={"csrf": csrf(admin), "name": "小明", "role": "annotator"}).text
    link = re.search(r"http://testserver(/signin/[\w-]+)", page)
    assert link
    person = browser(None)
    assert person.post(link[1]).status_code == 303
    form = {"csrf": csrf(person), "email": "Ming@Example.com", "password": "correct horse"}
    assert person.post("/account", data=form | {"password": "short"}).status_code == 400
    assert person.post("/account", data=form).status_code == 200
    other = browser("user")
    assert other.post("/account", data=form | {"csrf": csrf(other)}).status_code == 400  # the address is taken
    again = browser(None)
    login = {"email": "ming@example.com", "password": "correct horse", "next": "/account"}
    response = again.post("/login", data=login)
    assert (response.status_code, response.headers["location"]) == (303, "/account")
    assert again.get("/people").status_code == 403


def test_whose_link_is_gone_gets_another(site, browser, csrf) -> None:
    admin = browser("admin")
    form = {"csrf": csrf(admin), "name": "Li", "role": "user"}
    first = re.search(r"/signin/[\w-]+", admin.post("/people", data=form).text)[0]
    with site.database.read() as session:
        user = session.query(User).filter_by(name="Li").one()
    second = re.search(r"/signin/[\w-]+", admin.post(f"/people/{user.id}/link", data=form).text)[0]
    assert browser(None).post(first).status_code == 404 and browser(None).post(second).status_code == 303
    admin.post(f"/people/{user.id}", data=form | {"status": "disabled"})
    assert admin.post(f"/people/{user.id}/link", data=form).status_code == 404
    assert admin.post("/people/usr_nobody/link", data=form).status_code == 404
    person = browser("user")
    assert person.post(f"/people/{user.id}/link", data={"csrf": csrf(person)}).status_code == 403


def test_a_new_password_ends_the_other_sessions(site, browser, csrf) -> None:
    here, there = browser(None), browser(None)
    for client in (here, there):
        client.post(f"/signin/{people.make_link(site.database, site.owner.id)}")
    form = {"csrf": csrf(here), "email": "me@example.com", "password": "correct horse"}
    assert here.post("/account", data=form).status_code == 200
    assert (here.get("/account").status_code, there.get("/account").status_code) == (200, 303)


def test_guessing_is_stopped_even_for_the_right_password(site, browser) -> None:
    people.set_password(site.database, site.owner.id, "o@example.com", "correct horse")
    client = browser(None)
    for _ in range(5):
        failed = client.post("/login", data={"email": "o@example.com", "password": "wrong"})
        assert failed.status_code == 401 and 'value="o@example.com"' in failed.text  # the e-mail stays in the form
    assert client.post("/login", data={"email": "o@example.com", "password": "correct horse"}).status_code == 401


def test_guessing_many_at_once_is_stopped_too(site, monkeypatch) -> None:
    people.set_password(site.database, site.owner.id, "o2@example.com", "correct horse")
    compared = []
    everyone = threading.Barrier(8, timeout=10)

    def slow(hashed: str, password: str) -> bool:
        compared.append(password)
        time.sleep(0.2)  # about the time of a comparison
        return False

    def guess(number: int) -> None:
        everyone.wait()
        people.check_password(site.database, "o2@example.com", str(number), "1.2.3.4")

    monkeypatch.setattr(people, "_fits", slow)
    threads = [threading.Thread(target=guess, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(compared) == 5


def test_few_passwords_are_compared_at_once_and_others_wait_without_a_thread(site, monkeypatch) -> None:
    """Each comparison takes 64 MiB, and anybody may trigger one."""
    go, comparing = threading.Event(), []

    def slow(hashed: str, password: str) -> bool:
        comparing.append(password)
        return not go.wait(20)

    monkeypatch.setattr(people, "_fits", slow)
    client = TestClient(site.app)
    with client, ThreadPoolExecutor(60) as pool:
        guesses = [pool.submit(client.post, "/login", data={"email": f"{i}@x", "password": "p"}) for i in range(60)]
        time.sleep(0.3)
        assert client.get("/readyz").status_code == 503  # no model, but a thread is free to respond
        assert len(comparing) == 2
        go.set()
        assert {future.result().status_code for future in guesses} == {401}


def test_the_right_password_resets_the_count(site) -> None:
    people.set_password(site.database, site.owner.id, "o3@example.com", "correct horse")
    for password in ["wrong"] * 4 + ["correct horse"] + ["wrong"] * 4:
        people.check_password(site.database, "o3@example.com", password, "1.2.3.4")
    assert people.check_password(site.database, "o3@example.com", "correct horse", "1.2.3.4")


def test_a_disabled_person_is_out_at_once(site, browser, csrf) -> None:
    admin, person = browser("admin"), browser("user")
    with site.database.read() as session:
        user = session.query(User).filter_by(role="user").one()
    form = {"csrf": csrf(admin), "status": "disabled"}
    assert admin.post(f"/people/{user.id}", data=form).status_code == 303
    assert person.get("/account").status_code == 303
    assert admin.post(f"/people/{user.id}", data=form | {"status": "active"}).status_code == 303
    assert person.get("/account").status_code == 200


@pytest.mark.parametrize("path", ["//evil.example", "/\\evil.example", "https://evil.example", "evil"])
def test_signing_in_leads_nowhere_else(site, browser, path: str) -> None:
    assert 'name="next" value="/"' in browser(None).get("/login", params={"next": path}).text


def test_a_key_is_found_until_it_is_revoked_or_expires(site) -> None:
    key, secret = site.keys.make(site.owner.id, "k")
    assert site.keys.find(secret).id == key.id
    assert site.keys.find(secret + "x") is None
    assert site.keys.revoke(key.id) and not site.keys.revoke(key.id)
    assert site.keys.find(secret) is None
    _, old = site.keys.make(site.owner.id, "old", expires_ms=1)
    assert site.keys.find(old) is None


def test_noting_that_a_key_was_used_does_not_bring_a_revoked_one_back(site, monkeypatch) -> None:
    key, secret = site.keys.make(site.owner.id, "k")
    write = site.database.write

    def write_after_another_process_revoked(patience):
        monkeypatch.setattr(site.database, "write", write)
        type(site.keys)(site.database, b"x").revoke(key.id)
        return write(patience)

    monkeypatch.setattr(site.database, "write", write_after_another_process_revoked)
    assert site.keys.find(secret)  # looked up before it was revoked
    site.keys._cache.clear()
    assert site.keys.find(secret) is None


def test_a_session_in_use_moves_its_end_and_one_that_ended_stays_so(site, browser, csrf, monkeypatch) -> None:
    client = browser("user")
    with site.database.write() as session:
        session.query(WebSession).update({"expires_ms": people.now_ms() + people.HOUR_MS})
    assert client.get("/account").status_code == 200
    with site.database.read() as session:
        assert session.query(WebSession).one().expires_ms > people.now_ms() + 11 * people.HOUR_MS
    with site.database.write() as session:
        session.query(WebSession).update({"expires_ms": people.now_ms() + people.HOUR_MS})
    token, write = client.cookies["tutelage"], site.database.write

    def write_after_signing_out():
        monkeypatch.setattr(site.database, "write", write)
        people.end_session(site.database, token)
        return write()

    monkeypatch.setattr(site.database, "write", write_after_signing_out)
    client.get("/account")
    assert people.find_session(site.database, token) is None


def test_the_pepper_is_private_and_needed(site) -> None:
    path = site.folder / "pepper"
    assert path.stat().st_mode & 0o077 == 0
    _, secret = site.keys.make(site.owner.id, "k")
    stranger = type(site.keys)(site.database, b"another pepper")
    assert stranger.find(secret) is None


def test_cookies_are_guarded(site, browser) -> None:
    token = people.make_link(site.database, site.owner.id)
    cookie = browser(None).post(f"/signin/{token}").headers["set-cookie"]
    assert re.fullmatch(r"tutelage=[\w-]+; HttpOnly; Path=/; SameSite=lax", cookie)
    token = people.make_link(site.database, site.owner.id)
    secure = TestClient(site.app, base_url="https://testserver", follow_redirects=False)
    cookie = secure.post(f"/signin/{token}").headers["set-cookie"]
    assert re.fullmatch(r"__Host-tutelage=[\w-]+; HttpOnly; Path=/; SameSite=lax; Secure", cookie)
