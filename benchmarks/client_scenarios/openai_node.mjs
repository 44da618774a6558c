// OpenAI's client for Node: node openai_node.mjs URL KEY MODEL, beside a node_modules with `openai`. As harness.py says.
// `tests/server/node_client.mjs` has the scenarios of plain chat and completions.
import assert from "node:assert/strict";
import OpenAI, { NotFoundError } from "openai";
import { VERSION } from "openai/version";

const [baseURL, apiKey, model] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey, maxRetries: 0 });
const messages = [{ role: "user", content: "Where is the cat, and what colour is it?" }];
const parameters = {
  type: "object",
  properties: { colour: { type: "string", enum: ["red", "black"] }, asleep: { type: "boolean" } },
  required: ["colour", "asleep"],
  additionalProperties: false,
};
const chat = { model, messages, max_tokens: 200 };
const response_format = { type: "json_schema", json_schema: { name: "cat", schema: parameters, strict: true } };
const tools = [{ type: "function", function: { name: "find_cat", parameters, strict: true } }];
const response = { model, input: messages[0].content, max_output_tokens: 200 };

function check(text) {
  const cat = JSON.parse(text);
  assert.ok(["red", "black"].includes(cat.colour));
  assert.equal(typeof cat.asleep, "boolean");
}

const scenarios = {
  async json_schema() {
    const answer = await client.chat.completions.create({ ...chat, response_format });
    check(answer.choices[0].message.content);
  },
  async parse_helper() {
    const answer = await client.chat.completions.parse({ ...chat, response_format });
    check(answer.choices[0].message.content);
  },
  async required_tool() {
    const answer = await client.chat.completions.create({ ...chat, tools, tool_choice: "required" });
    assert.equal(answer.choices[0].finish_reason, "tool_calls");
    check(answer.choices[0].message.tool_calls[0].function.arguments);
  },
  async tool_stream_helper() {
    const runner = client.chat.completions.stream({ ...chat, tools, tool_choice: "required" });
    const answer = await runner.finalChatCompletion();
    check(answer.choices[0].message.tool_calls[0].function.arguments);
  },
  async run_tools_helper() {
    const called = [];
    const run = { parse: JSON.parse, function: (cat) => called.push(cat) && "found" };
    const runner = client.chat.completions.runTools(
      { model, messages, tools: [{ type: "function", function: { ...tools[0].function, ...run } }] }, // raises at a limit
      { maxChatCompletions: 3 },
    );
    await runner.done();
    assert.ok(runner.messages.length > 1);
  },
  async response() {
    const answer = await client.responses.create({ ...response, max_output_tokens: 48 });
    assert.equal(typeof answer.output_text, "string");
    assert.equal(answer.usage.total_tokens, answer.usage.input_tokens + answer.usage.output_tokens);
  },
  async response_streamed() {
    const stream = await client.responses.create({ ...response, max_output_tokens: 48, stream: true });
    let text = "";
    let last;
    for await (const event of stream) {
      if (event.type === "response.output_text.delta") text += event.delta;
      last = event;
    }
    assert.ok(["response.completed", "response.incomplete"].includes(last.type));
    const parts = last.response.output.flatMap((item) => item.content ?? []);
    assert.equal(text, parts.map((part) => part.text).join(""));
  },
  async response_with_a_schema() {
    const format = { type: "json_schema", name: "cat", schema: parameters, strict: true };
    check((await client.responses.parse({ ...response, text: { format } })).output_text);
  },
  async response_with_tools() {
    const offered = [{ type: "function", ...tools[0].function }];
    const answer = await client.responses.create({ ...response, tools: offered, tool_choice: "required" });
    check(answer.output.find((item) => item.type === "function_call").arguments);
  },
  async response_stream_helper() {
    const offered = [{ type: "function", ...tools[0].function }];
    const stream = client.responses.stream({ ...response, tools: offered, tool_choice: "required" });
    const answer = await stream.finalResponse();
    check(answer.output.find((item) => item.type === "function_call").arguments);
  },
  async embeddings_are_not_found() {
    await assert.rejects(client.embeddings.create({ model, input: "x" }), NotFoundError);
  },
};

const found = {};
for (const [name, scenario] of Object.entries(scenarios)) {
  found[name] = await scenario().then(() => "", (error) => String(error).replace(/\s+/g, " ").slice(0, 600));
}
console.log(JSON.stringify({ version: VERSION, scenarios: found, figures: {} }));
