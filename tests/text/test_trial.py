"""A chat template is a program that comes with a download: it is tried in a process with limits."""

import re
import time
from pathlib import Path

import pytest

from tutelage import bounded
from tutelage.errors import InputError
from tutelage.text import trial
from tutelage.text.template import CHAT_TEMPLATE, Template
from tutelage.text.tokenizer import Tokenizer

SLOW = "{% for i in range(90000) %}{% for j in range(9000) %}{% endfor %}{% endfor %}"  # half an hour
LARGE = "{{ 'x' * 200000000 }}"
LONG = "{{ 'x' * 2000000 }}"
ASKED = [([{"role": "user", "content": "hello"}], True, None)]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits that are exceeded at once."""
    monkeypatch.setattr(trial, "SECONDS", 0.1)
    monkeypatch.setattr(trial, "_child", bounded.Child("tutelage.text.trial", memory=64, idle=2.0))


@pytest.mark.parametrize(
    "template, why",
    [(SLOW, "takes longer than 0.1 seconds"), (LARGE, "MemoryError"), (LONG, "writes 20000.. characters")],
)
def test_a_template_beyond_the_limits_is_refused_when_it_is_loaded(
    tokenizer: Tokenizer, tmp_path: Path, small: None, template: str, why: str
) -> None:
    tokenizer.save(tmp_path)
    (tmp_path / "chat_template.jinja").write_text(template + CHAT_TEMPLATE)
    began = time.monotonic()
    with pytest.raises(InputError) as refused:
        Tokenizer.load(tmp_path)
    assert re.fullmatch(rf"{tmp_path}: chat template: [^\n]*{why}[^\n]*", str(refused.value))
    assert time.monotonic() - began < 3
    (tmp_path / "chat_template.jinja").write_text("{# other #}" + CHAT_TEMPLATE)
    assert Tokenizer.load(tmp_path).end_of_turn_id == tokenizer.end_of_turn_id


def test_a_template_says_in_the_process_what_it_says_here() -> None:
    for text in ("{{ bos_token + messages[0].content }}", "{{ raise_exception('no\n user') }}", "{{ 1 / 0 }}"):
        template = Template(text, (("bos_token", "<s>"),))
        (there,) = trial.renderings(template, ASKED)
        (here,) = trial.render_all(text, template.specials, ASKED)
        assert str(there) == here.get("text", here.get("error"))


def test_a_message_of_any_length_is_one_short_line() -> None:
    (error,) = trial.renderings(Template("{{ raise_exception('a\n' * 9000) }}", ()), ASKED)
    assert isinstance(error, InputError) and "\n" not in str(error) and len(str(error)) < 1000
