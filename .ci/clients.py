"""The official Python client of OpenAI against a server of two models: every endpoint that it has, whole and streamed.

usage: clients.py URL WRITER VECTORS      (names of a model that writes, and of one that gives vectors)
"""
import json
import sys

import openai

url, writer, vectors = sys.argv[1:]
client = openai.OpenAI(base_url=url + "/v1", api_key="none", max_retries=0)
messages = [{"role": "user", "content": "Where is the lamp?"}]


def ok(what):
    print("ok    python:", what)


def refused(kind, ask):
    try:
        ask()
    except kind:
        return
    raise SystemExit(f"FAIL  no {kind.__name__}")


names = [m.id for m in client.models.list()]
assert names == [writer, vectors], names
ok("models: " + ", ".join(names))

whole = client.chat.completions.create(model=writer, messages=messages, max_tokens=24, logprobs=True, top_logprobs=2, seed=7)
assert whole.usage.completion_tokens == len(whole.choices[0].logprobs.content)
streamed, usage = "", None
for chunk in client.chat.completions.create(model=writer, messages=messages, max_tokens=24, seed=7, stream=True, stream_options={"include_usage": True}):
    streamed += (chunk.choices[0].delta.content or "") if chunk.choices else ""
    usage = chunk.usage or usage
assert streamed == whole.choices[0].message.content, (streamed, whole)
assert usage.total_tokens == whole.usage.total_tokens
ok(f"chat, whole and streamed: {streamed!r}")

two = client.completions.create(model=writer, prompt="Once upon a time", n=2, temperature=1, max_tokens=12, stop=["."])
assert len(two.choices) == 2
parts = client.completions.create(model=writer, prompt="Once upon a time", max_tokens=12, stream=True)
assert "".join(c.choices[0].text for c in parts if c.choices)
ok("completions, two and streamed")

schema = {"type": "object", "properties": {"place": {"type": "string", "maxLength": 20}, "sure": {"type": "boolean"}},
          "required": ["place", "sure"], "additionalProperties": False}
form = {"type": "json_schema", "json_schema": {"name": "where", "schema": schema, "strict": True}}
formed = client.chat.completions.create(model=writer, messages=messages, max_tokens=96, temperature=1, seed=3, response_format=form)
parsed = json.loads(formed.choices[0].message.content)
assert set(parsed) == {"place", "sure"} and isinstance(parsed["sure"], bool), parsed
ok(f"a JSON schema: {parsed}")

one = client.embeddings.create(model=vectors, input=["red", "the lamp of the house"]).data[0].embedding
assert abs(sum(x * x for x in one) - 1) < 1e-3
ok(f"embeddings: {len(one)} numbers of length 1")

refused(openai.NotFoundError, lambda: client.chat.completions.create(model="another", messages=messages))
refused(openai.BadRequestError, lambda: client.embeddings.create(model=writer, input="a"))
refused(openai.BadRequestError, lambda: client.chat.completions.create(model=writer, messages=messages, extra_body={"audio": {}}))
ok("refusals as errors of their kind")
