"""POST /v1/tokenize, POST /v1/detokenize and GET /v1/tokenizer_info, as in vLLM; also without /v1, as vLLM has them.

    {"prompt"} or {"messages"}  ->  {"count", "max_model_len", "tokens", "token_strs"}
    {"tokens"}                  ->  {"prompt"}

Messages get the ids that a chat completion reads. In a prompt, the text of a special token becomes that token, as in
transformers: programs look up the id of `eos_token` in this way. In /v1/completions it stays ordinary text.
"""

from typing import Annotated, Any, ClassVar

from fastapi import APIRouter, Request
from pydantic import Field, model_validator
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from tutelage.errors import InputError
from tutelage.server.api.chat_schemas import MAX_TOOLS, FunctionTool, Turns
from tutelage.server.api.schemas import DOCUMENTED, AnyText, RequestBody
from tutelage.server.encoder import Encoded, size_of
from tutelage.server.registry import Registry, Served, no_such_model
from tutelage.text.settings import token_text
from tutelage.web.auth import Inference
from tutelage.web.errors import JSON, ApiError
from tutelage.web.limits import estimated_tokens

router = APIRouter(responses=DOCUMENTED, tags=["tokenization"])
MOST = 2**17  # tokens of a text; its response has a megabyte


class TokenizeRequest(RequestBody):
    refused: ClassVar[list[str]] = ["chat_template", "chat_template_kwargs", "continue_final_message"]
    model: AnyText | None = None
    prompt: AnyText | None = None
    messages: Turns | None = None
    tools: Annotated[list[FunctionTool], Field(max_length=MAX_TOOLS, fail_fast=True)] | None = None
    add_special_tokens: bool | None = None  # by default only to a prompt, because chat templates write their own
    add_generation_prompt: bool | None = None  # true by default
    return_token_strs: bool | None = None

    @model_validator(mode="after")
    def one_text(self) -> "TokenizeRequest":
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give either prompt or messages")
        return self

    @property
    def characters(self) -> int:
        """The length of the text."""
        turns = [turn.message() for turn in self.messages or ()]
        return len(self.prompt or "") + size_of(turns, [tool.sent for tool in self.tools or ()])


class DetokenizeRequest(RequestBody):
    model: AnyText | None = None
    tokens: Annotated[list[Annotated[int, Field(ge=0)]], Field(max_length=MOST, fail_fast=True)]


@router.post("/tokenize", include_in_schema=False)
@router.post("/v1/tokenize")
async def tokenize(request: Request, body: TokenizeRequest, caller: Inference) -> Response:
    """The token ids of a text or a conversation. They may be more than the model's context."""
    assert caller.key
    body.refuse_unsupported()
    served = served_as(request.app.state.registry, body.model)
    cost = estimated_tokens(body.characters)
    with request.app.state.limits.generation(caller.key, cost) as spent:
        spent.tokens = cost
        ids = await ids_of(served, body, caller.queue)
    names = await run_in_threadpool(served.tokenizer.names_of, ids) if body.return_token_strs else None
    return JSON({"count": len(ids), "max_model_len": served.context, "tokens": ids, "token_strs": names})


async def ids_of(served: Served, body: TokenizeRequest, owner: str) -> list[int]:
    """The ids. Raises ApiError if they are more than MOST, or if the template refuses the messages."""
    if body.messages is None:
        framed = body.add_special_tokens is not False
        return few(await served.encoder.marked(owner, body.prompt or "", MOST, framed), "prompt")
    messages, tools = [turn.message() for turn in body.messages], [tool.sent for tool in body.tools or []]
    generation = body.add_generation_prompt is not False
    try:
        ids = few(await served.encoder.chat(owner, messages, MOST, generation, tools), "messages")
    except InputError as error:
        raise ApiError(400, str(error), param="messages", code="invalid_value") from None
    before, after = served.tokenizer.frame if body.add_special_tokens else ([], [])
    return [*before, *ids, *after]


def few(encoded: Encoded, param: str) -> list[int]:
    """The ids. Raises ApiError if there are too many."""
    if encoded.ids is None:
        about = "" if encoded.exact else "at least "
        message = f"The text has {about}{encoded.count} tokens; at most {MOST} can be asked for at once."
        raise ApiError(400, message, param=param, code="invalid_value")
    return list(encoded.ids)


@router.post("/detokenize", include_in_schema=False)
@router.post("/v1/detokenize")
async def detokenize(request: Request, body: DetokenizeRequest, caller: Inference) -> Response:
    """The text of token ids, special tokens included."""
    assert caller.key
    served = served_as(request.app.state.registry, body.model)
    tokens = served.tokenizer.vocab_size
    if body.tokens and (largest := max(body.tokens)) >= tokens:
        message = f"tokens contains {largest}; the model's tokens are 0 to {tokens - 1}."
        raise ApiError(400, message, param="tokens", code="invalid_value")
    with request.app.state.limits.generation(caller.key, len(body.tokens)) as spent:
        spent.tokens = len(body.tokens)
        (text,) = await served.encoder.decoded(caller.queue, [body.tokens], special=True)
    return JSON({"prompt": text})


@router.get("/tokenizer_info", include_in_schema=False)
@router.get("/v1/tokenizer_info")
def tokenizer_info(request: Request, caller: Inference, model: str | None = None) -> Response:
    """What is in the tokenizer's tokenizer_config.json: class, special tokens, chat template."""
    return JSON(info_of(served_as(request.app.state.registry, model)))


def info_of(served: Served) -> dict[str, Any]:
    tokenizer = served.tokenizer
    texts = {name: token_text(value) for name, value in tokenizer.settings.items() if name.endswith("_token")}
    named = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": tokenizer.names_of(tokenizer.end_ids)[0]}
    return named | tokenizer.settings | texts | {"chat_template": tokenizer.chat_template}


def served_as(models: Registry, name: str | None) -> Served:
    """The model with this name. Without a name, the tokenizer that all served policies share, with the least context.

    Raises ApiError if there is no such model, or their tokenizers differ.
    """
    served = [models.get(each) for each in models.names() if name in (each, None)]
    if name is not None and not served:
        raise no_such_model(name)
    served = [model for model in served if model.kind == "policy"] or served
    if not served:
        raise ApiError(404, "No model is served.", param="model", code="model_not_found")
    if len({model.encoder for model in served}) > 1:  # equal tokenizers share one
        message = f"The served models have different tokenizers. Name one: {', '.join(m.name for m in served)}."
        raise ApiError(400, message, param="model", code="missing_required_parameter")
    return min(served, key=lambda model: model.context)
