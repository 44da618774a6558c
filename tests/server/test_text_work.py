"""Long texts are moderated, redacted and formatted in another process, with the same results as short ones here."""

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tutelage.data.privacy import redact
from tutelage.moderation.moderator import ModerationConfig, Moderator
from tutelage.server.text_work import TextWork
from tutelage.web.markdown import markdown

FILLING = "the weather is fine. " * 150
LONG = FILLING + "砍 死，你 or write to a@b.example or 138 0013 8000\n\n**bold** <b>x</b>\n\n" + FILLING


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TextWork]:
    terms = tmp_path_factory.mktemp("terms") / "terms.txt"
    terms.write_text("[violence]\n砍死你\n", encoding="utf-8")
    made = TextWork(Moderator(ModerationConfig(terms=terms, builtin_terms=False)))
    yield made
    made.close()


def test_the_results_are_those_of_the_functions(work: TextWork) -> None:
    async def asked() -> None:
        texts = ["fine", LONG, "砍死妳", FILLING]
        verdicts = await work.verdicts("a", texts)
        assert verdicts == work.moderator.check(texts)
        assert [verdict["flagged"] for verdict in verdicts] == [False, True, True, False]
        for text in texts:
            redacted, counts = redact(text)
            assert await work.redacted("a", text) == (redacted, dict(counts))
            assert await work.formatted("a", text) == str(markdown(text))

    asyncio.run(asked())
    assert work.formatted_all("a", ["*a*", LONG]) == [str(markdown("*a*")), str(markdown(LONG))]


def test_a_changed_term_list_is_in_force_there_too(work: TextWork) -> None:
    terms = work.moderator.config.terms
    assert isinstance(terms, Path)
    terms.write_text("[violence]\nweather\n", encoding="utf-8")
    os.utime(terms, ns=(1, 1))
    assert asyncio.run(work.verdicts("a", [LONG]))[0]["flagged"]
