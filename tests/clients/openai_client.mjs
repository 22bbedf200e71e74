// The openai package's own examples; run by test_javascript.py with URL, API_KEY and MODEL.
import assert from "node:assert/strict";
import { test } from "node:test";
import OpenAI from "openai";

const model = process.env.MODEL;
const client = new OpenAI({ baseURL: process.env.URL + "/v1", apiKey: process.env.API_KEY, maxRetries: 0 });
const messages = [{ role: "user", content: "What is the capital of Japan?" }];
const parameters = {
  type: "object",
  properties: { city: { type: "string" } },
  required: ["city"],
  additionalProperties: false,
};
const paris = [{ role: "user", content: "What is the weather in Paris?" }];

test("chat", async () => {
  const answer = await client.chat.completions.create({ model, messages, temperature: 0, max_tokens: 16 });
  assert.match(answer.choices[0].message.content, /Tokyo/);
  assert.equal(answer.choices[0].finish_reason, "stop");
});

test("stream", async () => {
  const stream = await client.chat.completions.create({
    model, messages, temperature: 0, max_tokens: 16, stream: true, stream_options: { include_usage: true },
  });
  let text = "", usage = null;
  for await (const chunk of stream) {
    text += chunk.choices[0]?.delta.content ?? "";
    usage = chunk.usage ?? usage;
  }
  assert.match(text, /Tokyo/);
  assert.ok(usage.completion_tokens > 0);
});

test("completions with logprobs", async () => {
  const answer = await client.completions.create({
    model, prompt: "Monday, Tuesday,", temperature: 0, max_tokens: 2, logprobs: 1,
  });
  assert.match(answer.choices[0].text, /^ Wednesday/);
  assert.ok(answer.choices[0].logprobs.token_logprobs.every((each) => each <= 0));
});

test("a tool by the streaming helper", async () => {
  const stream = client.chat.completions.stream({
    model, messages: paris, temperature: 0, max_tokens: 60, tool_choice: "required",
    tools: [{ type: "function", function: { name: "get_weather", parameters } }],
  });
  const [call] = (await stream.finalChatCompletion()).choices[0].message.tool_calls;
  assert.equal(call.function.name, "get_weather");
  assert.match(JSON.parse(call.function.arguments).city, /Paris/);
});

test("a tool that runs, by name", async () => {
  const asked = [];
  const runner = client.chat.completions.runTools({
    model, messages: paris, temperature: 0, max_tokens: 60,
    tool_choice: { type: "function", function: { name: "get_weather" } },
    tools: [{
      type: "function",
      function: { name: "get_weather", parameters, parse: JSON.parse, function: ({ city }) => asked.push(city) },
    }],
  });
  await runner.done();
  assert.match(asked[0], /Paris/);
});

test("parse a schema", async () => {
  const schema = { ...parameters, properties: { city: { enum: ["Kyoto", "Tokyo"] } } };
  const answer = await client.chat.completions.parse({
    model, messages, temperature: 0, max_tokens: 40,
    response_format: { type: "json_schema", json_schema: { name: "city", schema, strict: true } },
  });
  assert.deepEqual(JSON.parse(answer.choices[0].message.content), { city: "Tokyo" });
});

test("responses, whole and streamed", async () => {
  const wanted = { model, input: "What is the capital of Japan?", temperature: 0, max_output_tokens: 16 };
  const answer = await client.responses.create(wanted);
  assert.match(answer.output_text, /Tokyo/);
  const final = await client.responses.stream(wanted).finalResponse();
  assert.equal(final.output_text, answer.output_text);
});

test("errors", async () => {
  const wrong = { model, messages, temperature: 9 };
  await assert.rejects(client.chat.completions.create(wrong), (error) => {
    return error instanceof OpenAI.BadRequestError && error.param === "temperature";
  });
});
