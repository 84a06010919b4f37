// One call of a client, as its users make it: `node calls.mjs <client> <call> <address>` prints what came, as JSON.

import { createOpenAI } from "@ai-sdk/openai";
import { createOpenRouter } from "@openrouter/ai-sdk-provider";
import { OpenRouter } from "@openrouter/sdk";
import { generateText, jsonSchema, Output, stepCountIs, streamText, tool } from "ai";
import OpenAI from "openai";

const MODEL = "openrouter/fusion";
const messages = [{ role: "user", content: "Why?" }];
const CITY = {
  type: "object",
  properties: { city: { enum: ["Oslo"] } },
  required: ["city"],
  additionalProperties: false,
};
const weather = { name: "weather", parameters: CITY };
const form = { type: "json_schema", json_schema: { name: "place", schema: CITY } };
const [, , client, call, address] = process.argv;

async function collected(stream) {
  const found = [];
  for await (const one of stream) found.push(one);
  return found;
}

function openai() {
  const sdk = new OpenAI({ baseURL: `${address}/v1`, apiKey: "sk-any", maxRetries: 2 });
  const create = (more) => sdk.chat.completions.create({ model: MODEL, messages, ...more });
  return {
    models: async () => (await sdk.models.list()).data.map((one) => one.id),
    chat: async () => await create(),
    stream: async () => await collected(await create({ stream: true, stream_options: { include_usage: true } })),
    tools: async () => await create({ tools: [{ type: "function", function: weather }] }),
    runner: async () => {
      const told = [];
      const runner = sdk.chat.completions.runTools({
        model: MODEL,
        messages,
        tools: [{ type: "function", function: { ...weather, parse: JSON.parse, function: (x) => (told.push(x), "Rain.") } }],
      });
      return { content: await runner.finalContent(), told };
    },
    schema: async () => (await sdk.chat.completions.parse({ model: MODEL, messages, response_format: form })),
    respond: async () => {
      const first = await sdk.responses.create({ model: MODEL, input: "Why?" });
      const second = await sdk.responses.create({ model: MODEL, input: "And?", previous_response_id: first.id });
      return [first.output_text, second.output_text];
    },
    respondStream: async () => {
      const events = await collected(await sdk.responses.create({ model: MODEL, input: "Why?", stream: true }));
      return events.map((one) => one.type);
    },
    repeats: async () => await sdk.chat.completions.create({ model: MODEL, messages }, { timeout: 500, maxRetries: 9 }),
    unknown: async () => await create({ model: "gtp" }),
  };
}

function openrouter() {
  const sdk = new OpenRouter({ apiKey: "sk-any", serverURL: `${address}/api/v1` });
  const send = (more, options) => sdk.chat.send({ chatRequest: { model: MODEL, messages, ...more } }, options);
  return {
    models: async () => (await sdk.models.list()).result.data.map((one) => one.id),
    chat: async () => await send(),
    stream: async () => await collected(await send({ stream: true })),
    tools: async () => await send({ tools: [{ type: "function", function: weather }] }),
    schema: async () => await send({ responseFormat: { type: "json_schema", jsonSchema: { name: "place", schema: CITY } } }),
    repeats: async () => await send({}, { timeoutMs: 500 }),
    unknown: async () => await send({ model: "gtp" }),
  };
}

function ai(model) {
  const ask = { model, prompt: "Why?", maxRetries: 2 };
  const tools = {
    weather: tool({ inputSchema: jsonSchema(CITY), execute: async ({ city }) => `Rain in ${city}.` }),
  };
  return {
    chat: async () => {
      const { text, usage, finishReason } = await generateText(ask);
      return { text, usage, finishReason };
    },
    stream: async () => {
      const reply = streamText(ask);
      return { pieces: await collected(reply.textStream), usage: await reply.usage };
    },
    tools: async () => {
      const { text, steps } = await generateText({ ...ask, tools, stopWhen: stepCountIs(3) });
      return { text, calls: steps.flatMap((step) => step.toolCalls.map((one) => [one.toolName, one.input])) };
    },
    schema: async () => (await generateText({ ...ask, output: Output.object({ schema: jsonSchema(CITY) }) })).output,
    unknown: async () => await generateText({ ...ask, maxRetries: 2 }),
  };
}

function chosen() {
  const name = call === "unknown" ? "gtp" : MODEL;
  const own = () => createOpenAI({ baseURL: `${address}/v1`, apiKey: "sk-any" });
  if (client === "openai") return openai();
  if (client === "openrouter") return openrouter();
  if (client === "ai-responses") return ai(own()(name));
  if (client === "ai-openrouter") {
    return ai(createOpenRouter({ baseURL: `${address}/api/v1`, apiKey: "sk-any" }).chat(name));
  }
  return ai(own().chat(name));
}

try {
  console.log(JSON.stringify({ reply: await chosen()[call]() }));
} catch (error) {
  const { name, message, code } = error;
  console.log(JSON.stringify({ error: { name, message, code, status: error.status ?? error.statusCode } }));
}
