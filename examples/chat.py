"""A chat through the openai package: `pip install openai`, then `octavo serve`, then this."""

import os

from openai import OpenAI

client = OpenAI(base_url=os.environ.get("OCTAVO_URL", "http://127.0.0.1:8000") + "/v1", api_key="none")
stream = client.chat.completions.create(
    model=client.models.list().data[0].id,
    messages=[{"role": "user", "content": "What is the capital of Japan?"}],
    max_tokens=50,
    temperature=0,
    stream=True,
)
for chunk in stream:
    if chunk.choices:
        print(chunk.choices[0].delta.content or "", end="", flush=True)
print()
