"""Ask with the OpenAI SDK as OpenRouter Fusion is asked. Needs `fusewire up`."""

from openai import OpenAI

client = OpenAI(base_url="http://localhost:8484/api/v1", api_key="none")
reply = client.chat.completions.create(
    model="openrouter/fusion",
    messages=[{"role": "user", "content": "Name three uses of copper."}],
    extra_body={"plugins": [{"id": "fusion", "preset": "general-budget"}]},
)
print(reply.choices[0].message.content)
print(reply.fusion["outcome_id"], reply.fusion["outcome_status"], reply.usage.cost)
