#!/bin/bash
# openai 3.57.0, openai-agents 0.24.0: a streamed response that reaches max_output_tokens is an exception.
#
# Guess:     `response.incomplete` ends a stream as `response.completed` does. A text that was cut is returned with the
#            status "incomplete", as it is without streaming and as chat completions do with finish_reason "length".
# Behaviour: openai's helper `responses.stream()` raises RuntimeError in get_final_response(), although all events, the
#            whole text and the usage have arrived. openai-agents raises ModelBehaviorError, also for `Runner.run`
#            when its caller does not stream. Without streaming the same answer is returned with its text.
# Seen:      the four calls:
#                create              The cat sat
#                stream              RuntimeError: Didn't receive a `response.completed` event.
#                Runner.run          ModelBehaviorError
#                Runner.run_streamed ModelBehaviorError
# So a small max_output_tokens, or a server's default for it, makes agents fail instead of giving a short answer.
# Exit status 0: still so. 1: it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check openai==3.57.0 openai-agents==0.24.0
cd "$folder"
"$folder/venv/bin/python" - 2>errors <<'PYTHON' || { tail -1 errors; exit 1; }
import asyncio
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from agents import Agent, OpenAIResponsesModel, Runner, set_tracing_disabled
from openai import AsyncOpenAI, OpenAI

TEXT = {"type": "output_text", "text": "The cat sat", "annotations": []}
MESSAGE = {"id": "msg_1", "type": "message", "role": "assistant", "status": "incomplete", "content": [TEXT]}
USAGE = {
    "input_tokens": 1,
    "output_tokens": 3,
    "total_tokens": 4,
    "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
    "output_tokens_details": {"reasoning_tokens": 0},
}
RESPONSE = {
    "id": "resp_1",
    "object": "response",
    "created_at": 1,
    "model": "m",
    "output": [MESSAGE],
    "tools": [],
    "tool_choice": "auto",
    "parallel_tool_calls": True,
    "status": "incomplete",
    "incomplete_details": {"reason": "max_output_tokens"},
    "usage": USAGE,
}
BEGUN = RESPONSE | {"status": "in_progress", "output": [], "incomplete_details": None, "usage": None}
PLACE = {"item_id": "msg_1", "output_index": 0, "content_index": 0}
EVENTS = [
    {"type": "response.created", "response": BEGUN},
    {"type": "response.in_progress", "response": BEGUN},
    {
        "type": "response.output_item.added",
        "output_index": 0,
        "item": MESSAGE | {"status": "in_progress", "content": []},
    },
    PLACE | {"type": "response.content_part.added", "part": TEXT | {"text": ""}},
    PLACE | {"type": "response.output_text.delta", "delta": TEXT["text"], "logprobs": []},
    PLACE | {"type": "response.output_text.done", "text": TEXT["text"], "logprobs": []},
    PLACE | {"type": "response.content_part.done", "part": TEXT},
    {"type": "response.output_item.done", "output_index": 0, "item": MESSAGE},
    {"type": "response.incomplete", "response": RESPONSE},
]


class Server(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        kind, body = "application/json", json.dumps(RESPONSE)
        if asked.get("stream"):
            lines = [json.dumps(event | {"sequence_number": number}) for number, event in enumerate(EVENTS)]
            kind = "text/event-stream"
            body = "".join(f"event: {e['type']}\ndata: {line}\n\n" for e, line in zip(EVENTS, lines))
        self.send_response(200)
        self.send_header("content-type", kind)
        self.end_headers()
        self.wfile.write(body.encode())


server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
threading.Thread(target=server.serve_forever, daemon=True).start()
settings = {"base_url": f"http://127.0.0.1:{server.server_port}/v1", "api_key": "x", "max_retries": 0}
client = OpenAI(**settings)
set_tracing_disabled(True)
agent = Agent(name="a", model=OpenAIResponsesModel("m", AsyncOpenAI(**settings)))


def create():
    return client.responses.create(model="m", input="hi", max_output_tokens=3).output_text


def stream():
    with client.responses.stream(model="m", input="hi", max_output_tokens=3) as events:
        for _ in events:
            pass
        return events.get_final_response().output_text


def run():
    return asyncio.run(Runner.run(agent, "hi")).final_output


def run_streamed():
    async def work():
        result = Runner.run_streamed(agent, "hi")
        async for _ in result.stream_events():
            pass
        return result.final_output

    return asyncio.run(work())


found = []
for name, work in (
    ("create", create),
    ("stream", stream),
    ("Runner.run", run),
    ("Runner.run_streamed", run_streamed),
):
    try:
        found.append(work())
    except Exception as error:
        said = f": {error}" if type(error) is RuntimeError else ""
        found.append(f"{type(error).__name__}{said}")
    print(f"{name:19} {found[-1]}")
assert found[0] == "The cat sat", "without streaming the text is no longer returned"
assert found[1].startswith("RuntimeError"), "the helper takes response.incomplete now"
assert found[2:] == ["ModelBehaviorError"] * 2, "openai-agents takes response.incomplete now"
PYTHON
