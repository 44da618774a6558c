"""A server's data folder in place of a stage's file: exported once, kept by the run, and hashed as a file."""

import hashlib
import json
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from world import World, exchanges, interrupted, results

from tutelage import cli
from tutelage.store.consent import TEXT_VERSION
from tutelage.store.ids import new_id
from tutelage.store.tables import ChatMessage, Comparison, Consent, Conversation, Feedback, User
from tutelage.web.keys import open_store

COMMON = ["--dtype", "fp32", "--heldout", "0"]


class Server:
    """A server's data: one person, and what they said of answers to the world's questions."""

    def __init__(self, folder: Path, url: str = ""):
        self.folder = folder
        self.database, _ = open_store(folder, url)
        self.said = 0
        with self.database.write() as session:
            session.add(User(id="usr_1", name="x"))
            session.flush()
            for kind in ("record", "train"):
                consent = Consent(id=f"cns_{kind}", user_id="usr_1", kind=kind, granted=True, text_version=TEXT_VERSION)
                session.add(consent)

    def hear(self, count: int) -> None:
        """So many more chats, each with two answers, a thumb for each, a choice and a better answer."""
        with self.database.write() as session:
            for question, answer in exchanges(self.said + count, 12)[self.said :]:
                chat = Conversation(id=new_id("cnv_"), user_id="usr_1")
                rows = [("user", question), ("assistant", answer), ("assistant", "red red cat")]
                asked, good, bad = (
                    ChatMessage(id=new_id("msg_"), conversation_id=chat.id, role=role, content=text, params={})
                    for role, text in rows
                )
                good.parent_id = bad.parent_id = asked.id
                said = [Feedback(message_id=good.id, kind="thumb", value=1, text="")]
                said += [Feedback(message_id=bad.id, kind="thumb", value=-1, text="")]
                said += [Feedback(message_id=bad.id, kind="demonstration", text=f"{answer} thank you.")]
                pair = Comparison(a_message_id=bad.id, b_message_id=good.id, conversation_id=chat.id, winner="b")
                for row in (*said, pair):
                    row.id, row.user_id, row.consent_id = new_id("fbk_"), "usr_1", "cns_train"
                for row in (chat, asked, good, bad, *said, pair):
                    session.add(row)
                    session.flush()
        self.said += count


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    made = Server(tmp_path / "data")
    made.hear(12)
    yield made
    made.database.close()


@pytest.fixture
def kto(world: World, server: Server, tmp_path: Path) -> Callable[..., Path]:
    """kto(*options): run it on the server's thumbs; its run directory."""

    def run(*words: str, out: str = "kto", feedback: str = "") -> Path:
        given = ["--policy", str(world.sft), "--feedback", feedback or str(server.folder), "--out", str(tmp_path / out)]
        cli.main(["kto", *given, *COMMON, "--batch", "4", *words])
        return tmp_path / out

    return run


def kept(out: Path) -> Path:
    """The one export that a run keeps; its hash is in run.json."""
    (path,) = (out / "inputs").iterdir()
    record = json.loads((out / "run.json").read_text())
    assert {"path": str(path), "sha256": hashlib.sha256(path.read_bytes()).hexdigest()} in record["inputs"].values()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    return path


def refused(capsys: pytest.CaptureFixture[str], call: Callable[[], Any]) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        call()
    said = capsys.readouterr().err
    assert end.value.code == 2
    return said


def test_every_stage_that_learns_from_people(world: World, server: Server, tmp_path: Path) -> None:
    data = str(server.folder)
    for verb, words in {
        "kto": ["--policy", str(world.sft), "--feedback", data],
        "dpo": ["--policy", str(world.sft), "--comparisons", data],
        "reward": ["--base", str(world.sft), "--comparisons", data, "--demos", data],
        "sft": ["--base", str(world.base), "--demos", data, "--tokens", "512"],
    }.items():
        out = tmp_path / verb
        cli.main([verb, *words, "--out", str(out), *(COMMON if verb != "sft" else COMMON[:2])])
        exports = sorted(path.name.split("-")[0] for path in (out / "inputs").iterdir())
        assert exports == (["comparisons", "demos"] if verb == "reward" else [words[2].strip("-")])
    assert results(tmp_path / "kto")["thumbs_up"] == results(tmp_path / "kto")["thumbs_down"] == 12
    assert results(tmp_path / "dpo")["rankings"] == results(tmp_path / "reward")["rankings"] == 24
    assert results(tmp_path / "sft")["conversations"] > 0


def test_a_finished_run_is_what_it_was_until_it_is_replaced(server: Server, kto: Any, capsys: Any) -> None:
    out = kto()
    first = kept(out)
    assert len(first.read_text().splitlines()) == 24 and "24 exported" in capsys.readouterr().err
    server.hear(4)
    kto()
    assert kept(out) == first and "already finished" in (said := capsys.readouterr().err) and "using" in said
    assert "--lr -1" in refused(capsys, lambda: kto("--overwrite", "--lr", "-1"))
    assert kept(out) == first
    kto("--overwrite")
    second = kept(out)
    assert second != first and len(second.read_text().splitlines()) == 32
    assert results(out)["thumbs_up"] == 16


def test_a_resumed_run_goes_on_with_what_it_keeps(
    server: Server, kto: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = kto(out="whole")
    monkeypatch.setattr(cli, "fail", lambda line: pytest.fail(line))
    with monkeypatch.context() as patch:
        patch.setattr(cli, "main", cli.run)  # lets the interrupt through
        interrupted(lambda: kto("--checkpoint-seconds", "0"), monkeypatch, 2)
        (export,) = (tmp_path / "kto" / "inputs").iterdir()
        server.hear(4)
        interrupted(lambda: kto("--overwrite"), monkeypatch, 4)  # a replaced run that was stopped goes on, too
    out = kto()
    assert kept(out) == export and results(out)["thumbs_up"] == 12
    assert (out / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_a_refused_run_leaves_nothing(world: World, server: Server, kto: Any, tmp_path: Path, capsys: Any) -> None:
    before = set(tmp_path.iterdir())
    bad = refused(capsys, lambda: kto(feedback=str(world.sft)))
    assert "--feedback" in bad and "a folder without tutelage.db" in bad
    assert refused(capsys, lambda: kto(feedback=f"sqlite:///{tmp_path}/none.db")).count("\n") == 1
    with server.database.write() as session:
        session.query(Consent).filter_by(id="cns_train").update({"granted": False})
    nothing = refused(capsys, lambda: kto())
    assert "nothing to train on: 0 exported, 24 left out (written without consent to training 24)" in nothing
    with server.database.write() as session:
        session.query(Consent).filter_by(id="cns_train").update({"granted": True})
        session.query(Feedback).filter_by(value=-1).delete()
    assert "12 thumbs up and 0 down" in refused(capsys, lambda: kto())
    left = {path for path in set(tmp_path.iterdir()) - before if (path / "inputs").exists()}
    assert not left


def test_a_database_url_is_as_good_as_its_folder(server: Server, kto: Any) -> None:
    """Path would drop a slash of the URL."""
    by_folder, url = kto(out="one"), f"sqlite:///{server.folder}/tutelage.db"
    by_url = kto(out="two", feedback=url)
    assert kept(by_folder).read_bytes() == kept(by_url).read_bytes()


@pytest.mark.slow
def test_a_postgresql_url(kto: Any, postgresql: Any, tmp_path: Path) -> None:
    url = postgresql.new_database().replace("tests@", "tests:secret@")  # trusted, so any password will do
    theirs = Server(tmp_path / "theirs", url)
    theirs.hear(12)
    out = kto(feedback=url)
    assert len(kept(out).read_text().splitlines()) == 24
    theirs.hear(1)
    assert kept(kto(feedback=url)) == kept(out) and "secret" not in (out / "run.json").read_text()
    theirs.database.close()
