"""/tokenize, /detokenize and /tokenizer_info: what vLLM's clients ask for, compared with transformers."""

import itertools
from pathlib import Path
from typing import Any

import pytest
from local_worker import local_encoder
from tokenizers import Tokenizer as BackendTokenizer
from tokenizers import processors
from transformers import AutoTokenizer

from tutelage.text.tokenizer import END_OF_TURN, Tokenizer

TEXTS = ["the cat sat", "", " a  b\n\n", "你好 🐈 e\u0301", "<|user|>hi<|end|><|assistant|>", END_OF_TURN, "x" * 3000]
TURNS = [
    {"role": "system", "content": "be kind"},
    {"role": "user", "content": "the cat 你"},
    {"role": "assistant", "content": "on the mat"},
    {"role": "user", "content": "why?"},
]


@pytest.fixture(scope="module", params=["ours", "with a beginning and an end"])
def read(request: pytest.FixtureRequest, tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(tokenizer, the same as transformers reads it)."""
    if request.param != "ours":
        backend = BackendTokenizer.from_str(tokenizer.to_json())
        ends = [(token, tokenizer.special[token]) for token in ("<|endoftext|>", "<|pad|>")]
        backend.post_processor = processors.TemplateProcessing(single="<|endoftext|> $A <|pad|>", special_tokens=ends)
        tokenizer = Tokenizer(backend, tokenizer.settings)
    folder: Path = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save(folder)
    return tokenizer, AutoTokenizer.from_pretrained(folder)


@pytest.fixture
def post(serving, read) -> Any:
    """post("/tokenize", prompt="x") -> the response of a server with the tokenizer."""
    s = serving()
    for served in s.app.state.registry.served.values():
        served.tokenizer, served.encoder = read[0], local_encoder(read[0])

    def send(path: str, **body: Any) -> Any:
        return s.client.post(path, json=body)

    send.server = s
    return send


@pytest.mark.parametrize("special", [None, False, True])
def test_a_prompt_has_the_ids_of_transformers(post, read, special: bool | None) -> None:
    body = {} if special is None else {"add_special_tokens": special}
    for text in TEXTS:
        found = post("/tokenize", prompt=text, return_token_strs=True, **body).json()
        expected = read[1](text, add_special_tokens=special is not False)["input_ids"]
        names = read[1].convert_ids_to_tokens(expected)
        assert found == {"count": len(expected), "max_model_len": 64, "tokens": expected, "token_strs": names}


def test_messages_have_the_ids_of_transformers(post, read) -> None:
    for special, generation in itertools.product((None, False, True), repeat=2):
        settings = {"add_special_tokens": special, "add_generation_prompt": generation}
        body = {name: value for name, value in settings.items() if value is not None}
        found = post("/v1/tokenize", model="stub", messages=TURNS, **body).json()
        text = read[1].apply_chat_template(TURNS, add_generation_prompt=generation is not False, tokenize=False)
        assert found["tokens"] == read[1](text, add_special_tokens=bool(special))["input_ids"]
        assert found["count"] == len(found["tokens"]) and found["token_strs"] is None


def test_messages_are_counted_as_a_chat_counts_them(post) -> None:
    """A typed special token is ordinary text there."""
    for served in post.server.app.state.registry.served.values():
        served.context = 1000
    turns = [{"role": "user", "content": [{"type": "text", "text": f"a{END_OF_TURN}b"}]}]
    for body in ({}, {"tools": [{"type": "function", "function": {"name": "f"}}]}):
        counted = post("/v1/tokenize", messages=turns, **body).json()["count"]
        answer = post("/v1/chat/completions", model="stub", messages=turns, max_tokens=1, **body).json()
        assert counted == answer["usage"]["prompt_tokens"]


def test_ids_are_read_back(post, read) -> None:
    for path, text in itertools.product(("/detokenize", "/v1/detokenize"), TEXTS):
        ids = read[1](text)["input_ids"]
        assert post(path, tokens=ids).json() == {"prompt": read[1].decode(ids)}


def test_the_tokenizer_is_described(post, read) -> None:
    for path in ("/tokenizer_info", "/v1/tokenizer_info?model=stub"):
        found = post.server.client.get(path).json()
        assert (found["eos_token"], found["pad_token"]) == (read[1].eos_token, read[1].pad_token)
        assert found["chat_template"] == read[1].chat_template and found["tokenizer_class"]


MISTAKES: list[tuple[str, dict[str, Any], int, str, str | None]] = [
    ("/tokenize", {}, 400, "invalid_value", None),
    ("/tokenize", {"prompt": "x", "messages": TURNS}, 400, "invalid_value", None),
    ("/tokenize", {"prompt": ["x"]}, 400, "invalid_value", "prompt"),
    ("/tokenize", {"prompt": "x" * 140_000}, 400, "invalid_value", "prompt"),
    ("/tokenize", {"prompt": "x", "model": "none"}, 404, "model_not_found", "model"),
    ("/tokenize", {"messages": []}, 400, "invalid_value", "messages"),
    ("/tokenize", {"messages": TURNS, "chat_template": "{{ x }}"}, 400, "unsupported_parameter", "chat_template"),
    ("/tokenize", {"messages": TURNS, "continue_final_message": True}, 400, "unsupported_parameter",
     "continue_final_message"),
    ("/detokenize", {}, 400, "missing_required_parameter", "tokens"),
    ("/detokenize", {"tokens": [-1]}, 400, "invalid_value", "tokens.0"),
    ("/detokenize", {"tokens": [3, 10**30]}, 400, "invalid_value", "tokens"),
    ("/detokenize", {"tokens": "3"}, 400, "invalid_value", "tokens"),
    ("/detokenize", {"tokens": [3] * 200_000}, 400, "invalid_value", "tokens"),
]  # fmt: skip


def test_mistakes(serving) -> None:
    client = serving().client
    for path, body, status, code, param in MISTAKES:
        response = client.post(path, json=body)
        error = response.json()["error"]
        assert (response.status_code, error["code"], error["param"]) == (status, code, param), (path, error)


def test_without_a_name_the_tokenizer_must_be_the_same(serving, tokenizer) -> None:
    s = serving()
    served = s.app.state.registry.served
    served["other"] = type(served["stub"])(**(vars(served["stub"]) | {"name": "other", "context": 32}))
    assert s.client.post("/tokenize", json={"prompt": "x"}).json()["max_model_len"] == 32
    changed = tokenizer.settings | {"chat_template": tokenizer.chat_template + " "}
    served["other"].tokenizer = Tokenizer(BackendTokenizer.from_str(tokenizer.to_json()), changed)
    served["other"].encoder = local_encoder(served["other"].tokenizer)
    response = s.client.post("/tokenize", json={"prompt": "x"})
    assert response.status_code == 400 and "stub, other" in response.json()["error"]["message"]
    assert s.client.post("/tokenize", json={"prompt": "x", "model": "stub"}).status_code == 200
    assert s.client.get("/tokenizer_info?model=other").json()["chat_template"].endswith(" ")


def test_a_key_and_its_limits_hold_here_too(serving) -> None:
    s = serving(key={"tokens_per_minute": 100})
    for path in ("/tokenize", "/v1/tokenize", "/detokenize", "/v1/detokenize"):
        without = s.client.post(path, json={"prompt": "x", "tokens": [1]}, headers={"authorization": ""})
        assert (without.status_code, without.json()["error"]["code"]) == (401, "invalid_api_key")
    assert s.client.get("/tokenizer_info", headers={"authorization": ""}).status_code == 401
    assert s.client.post("/tokenize", json={"prompt": "x" * 300}).status_code == 200
    assert s.client.post("/tokenize", json={"prompt": "x" * 300}).status_code == 429
