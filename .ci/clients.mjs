// The official JavaScript client of OpenAI against a server of two models: every endpoint that it has, whole and streamed.
// usage: node clients.mjs URL WRITER VECTORS     (names of a model that writes, and of one that gives vectors)
import assert from "node:assert/strict";
import { createRequire } from "node:module";

const { default: OpenAI } = createRequire(process.cwd() + "/")("openai");
const [url, writer, vectors] = process.argv.slice(2);
const client = new OpenAI({ baseURL: url + "/v1", apiKey: "none", maxRetries: 0 });
const ok = (what) => console.log("ok    javascript: " + what);
const messages = [{ role: "user", content: "Where is the lamp?" }];

const names = (await client.models.list()).data.map((m) => m.id);
assert.deepEqual(names, [writer, vectors]);
ok("models: " + names.join(", "));

const whole = await client.chat.completions.create({ model: writer, messages, max_tokens: 24, logprobs: true, top_logprobs: 2, seed: 7 });
assert.equal(whole.usage.completion_tokens, whole.choices[0].logprobs.content.length);
let streamed = "", usage = null, reason = null;
for await (const chunk of await client.chat.completions.create({ model: writer, messages, max_tokens: 24, seed: 7, stream: true, stream_options: { include_usage: true } })) {
  streamed += chunk.choices[0]?.delta?.content ?? "";
  reason = chunk.choices[0]?.finish_reason ?? reason;
  usage = chunk.usage ?? usage;
}
assert.equal(streamed, whole.choices[0].message.content);
assert.equal(usage.total_tokens, whole.usage.total_tokens);
assert.equal(reason, whole.choices[0].finish_reason);
ok("chat, whole and streamed: " + JSON.stringify(streamed));

const two = await client.completions.create({ model: writer, prompt: "Once upon a time", n: 2, temperature: 1, max_tokens: 12, stop: ["."] });
assert.equal(two.choices.length, 2);
let text = "";
for await (const chunk of await client.completions.create({ model: writer, prompt: "Once upon a time", max_tokens: 12, stream: true })) text += chunk.choices[0]?.text ?? "";
assert.ok(text.length > 0);
ok("completions, two and streamed");

const schema = { type: "object", properties: { place: { type: "string", maxLength: 20 }, sure: { type: "boolean" } }, required: ["place", "sure"], additionalProperties: false };
const formed = await client.chat.completions.create({ model: writer, messages, max_tokens: 96, temperature: 1, seed: 3, response_format: { type: "json_schema", json_schema: { name: "where", schema, strict: true } } });
const parsed = JSON.parse(formed.choices[0].message.content);
assert.ok(typeof parsed.place === "string" && typeof parsed.sure === "boolean");
ok("a JSON schema: " + JSON.stringify(parsed));

for (const encoding_format of [undefined, "float", "base64"]) {
  const found = await client.embeddings.create({ model: vectors, input: ["red", "the lamp of the house"], encoding_format });
  assert.equal(found.data.length, 2);
}
const one = (await client.embeddings.create({ model: vectors, input: "red" })).data[0].embedding;
assert.ok(Math.abs(one.reduce((sum, x) => sum + x * x, 0) - 1) < 1e-3);
ok(`embeddings: ${one.length} numbers of length 1`);

await assert.rejects(client.chat.completions.create({ model: "another", messages }), OpenAI.NotFoundError);
await assert.rejects(client.embeddings.create({ model: writer, input: "a" }), OpenAI.BadRequestError);
await assert.rejects(client.chat.completions.create({ model: writer, messages, audio: {} }), OpenAI.BadRequestError);
const aborted = new AbortController();
const long = await client.completions.create({ model: writer, prompt: "Once", max_tokens: 400, stream: true }, { signal: aborted.signal });
for await (const _ of long) aborted.abort();
ok("refusals as errors of their kind, and a stream that is left");
