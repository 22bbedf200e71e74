// @anthropic-ai/sdk's own examples; run by test_javascript.py with URL, API_KEY and MODEL.
import assert from "node:assert/strict";
import { test } from "node:test";
import Anthropic from "@anthropic-ai/sdk";

const model = process.env.MODEL;
const client = new Anthropic({ baseURL: process.env.URL, apiKey: process.env.API_KEY, maxRetries: 0 });
const messages = [{ role: "user", content: "What is the capital of Japan?" }];
const wanted = { model, messages, temperature: 0, max_tokens: 16 };

test("a message, whole and streamed", async () => {
  const answer = await client.messages.create(wanted);
  assert.match(answer.content[0].text, /Tokyo/);
  assert.equal(answer.stop_reason, "end_turn");
  const stream = client.messages.stream(wanted);
  let text = "";
  stream.on("text", (piece) => { text += piece; });
  const final = await stream.finalMessage();
  assert.equal(text, answer.content[0].text);
  assert.deepEqual(final.usage.output_tokens, answer.usage.output_tokens);
});

test("a tool", async () => {
  const answer = await client.messages.create({
    ...wanted, max_tokens: 60, messages: [{ role: "user", content: "What is the weather in Paris?" }],
    tool_choice: { type: "any" },
    tools: [{
      name: "get_weather",
      input_schema: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
    }],
  });
  const use = answer.content.find((block) => block.type === "tool_use");
  assert.equal(use.name, "get_weather");
  assert.match(use.input.city, /Paris/);
  assert.equal(answer.stop_reason, "tool_use");
});

test("count tokens", async () => {
  const { input_tokens } = await client.messages.countTokens({ model, messages });
  assert.equal(input_tokens, (await client.messages.create({ ...wanted, max_tokens: 1 })).usage.input_tokens);
});

test("errors", async () => {
  await assert.rejects(client.messages.create({ ...wanted, temperature: 9 }), Anthropic.BadRequestError);
});
