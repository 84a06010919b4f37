"""Stream an answer with the OpenAI SDK. Needs `fusewire up`."""

from openai import OpenAI

client = OpenAI(base_url="http://localhost:8484/v1", api_key="none")  # was http://localhost:4000
print([model.id for model in client.models.list()])
with client.chat.completions.stream(
    model="fusion", messages=[{"role": "user", "content": "Name three uses of copper."}]
) as stream:
    print(stream.get_final_completion().choices[0].message.content)
