"""Answer a file of prompts as a batch.

Needs `fusewire up`, and in.jsonl in the form of OpenAI's batches.
"""

import time

from openai import OpenAI

client = OpenAI(base_url="http://localhost:8484/v1", api_key="none")
with open("in.jsonl", "rb") as lines:
    uploaded = client.files.create(file=lines, purpose="batch")
batch = client.batches.create(
    input_file_id=uploaded.id,
    endpoint="/v1/chat/completions",
    completion_window="24h",
    extra_body={"x_fusewire": {"pool": "default"}},
)
while batch.status in ("validating", "in_progress", "finalizing"):
    time.sleep(1)
    batch = client.batches.retrieve(batch.id)
print(batch.status, batch.request_counts.completed, "of", batch.request_counts.total)
print(client.files.content(batch.output_file_id).text.splitlines()[0])
