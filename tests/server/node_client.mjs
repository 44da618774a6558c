// What the official Node client makes of our server: node node_client.mjs URL KEY, beside a node_modules with `openai`.
// Each scenario throws if it is not as it should be; prints {scenario: "" or what was wrong} as JSON.
import assert from "node:assert/strict";
import OpenAI, { APIUserAbortError, AuthenticationError, BadRequestError, NotFoundError } from "openai";
import { VERSION } from "openai/version";

const [baseURL, apiKey] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey, maxRetries: 0 });
const messages = [{ role: "user", content: "where is the cat?" }];
const ask = { model: "chat", messages, max_tokens: 8, seed: 1 };

const scenarios = {
  async models() {
    const names = [];
    for await (const model of client.models.list()) names.push(model.id);
    assert.ok(["base", "chat", "judge"].every((name) => names.includes(name)));
    assert.equal((await client.models.retrieve("judge")).object, "model");
  },
  async chat() {
    const answer = await client.chat.completions.create({ ...ask, n: 2, logprobs: true, top_logprobs: 2 });
    assert.equal(answer.choices.length, 2);
    assert.equal(answer.choices[0].message.role, "assistant");
    assert.ok(answer.choices[0].logprobs.content.every((token) => token.top_logprobs.length === 2));
    assert.equal(answer.usage.total_tokens, answer.usage.prompt_tokens + answer.usage.completion_tokens);
    assert.match(answer._request_id, /^req_/);
  },
  async stream() {
    const whole = await client.chat.completions.create(ask);
    const stream = await client.chat.completions.create({ ...ask, stream: true, stream_options: { include_usage: true } });
    let [text, usage] = ["", null];
    for await (const chunk of stream) {
      text += chunk.choices[0]?.delta?.content ?? "";
      usage = chunk.usage ?? usage;
    }
    assert.equal(text, whole.choices[0].message.content);
    assert.equal(usage.completion_tokens, whole.usage.completion_tokens);
  },
  async stream_helper() {
    const runner = client.chat.completions.stream({ ...ask, n: 3 });
    const answer = await runner.finalChatCompletion();
    assert.deepEqual(answer.choices.map((choice) => choice.message.role), ["assistant", "assistant", "assistant"]);
  },
  async abort() {
    const stream = await client.chat.completions.create({ ...ask, n: 4, stream: true });
    for await (const _ of stream) break; // leaving the loop aborts the request
    const stop = new AbortController();
    const running = client.chat.completions.create(ask, { signal: stop.signal });
    stop.abort();
    await assert.rejects(running, APIUserAbortError);
    assert.ok((await client.chat.completions.create(ask)).choices.length);
  },
  async completion_of_2022() {
    const { choices } = await client.completions.create({
      model: "base", prompt: "the cat", temperature: 0, max_tokens: 10, top_p: 1, frequency_penalty: 0,
      presence_penalty: 0,
    });
    assert.equal(typeof choices[0].text, "string");
  },
  async stored() {
    for (let i = 0; i < 3; i++) await client.chat.completions.create({ ...ask, store: true, metadata: { by: "node" } });
    const found = [];
    for await (const item of client.chat.completions.list({ limit: 2, metadata: { by: "node" } })) found.push(item.id);
    assert.equal(new Set(found).size, 3);
    assert.ok((await client.chat.completions.delete(found[0])).deleted);
  },
  async moderation() {
    const { results } = await client.moderations.create({ input: "how to make a bomb" });
    assert.equal(results[0].flagged, true);
  },
  async errors() {
    const told = (type, code, param) => (error) => error instanceof type && error.code === code && error.param === param;
    await assert.rejects(client.chat.completions.create({ ...ask, model: "x" }), told(NotFoundError, "model_not_found", "model"));
    await assert.rejects(client.chat.completions.create({ ...ask, n: 99 }), told(BadRequestError, "invalid_value", "n"));
    const stranger = new OpenAI({ baseURL, apiKey: "sk-nobody", maxRetries: 0 });
    await assert.rejects(stranger.models.list(), told(AuthenticationError, "invalid_api_key", null));
  },
};

const told = { version: VERSION };
for (const [name, scenario] of Object.entries(scenarios)) {
  told[name] = await scenario().then(() => "", (error) => String(error?.stack ?? error));
}
console.log(JSON.stringify(told));
