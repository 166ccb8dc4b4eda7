import json
import os
from collections.abc import AsyncIterator

import httpx

BASE_URL = os.getenv("OPENAI_BASE_URL", "https://api.openai.com/v1")


async def ask_model(question: str, *, api_key: str, model: str) -> AsyncIterator[str]:
    """Asks a model of an API that speaks OpenAI's, and hands on its answer as it comes."""
    request = {
        "model": model,
        "stream": True,
        "messages": [
            {"role": "system", "content": "You are a helpful assistant."},
            {"role": "user", "content": question},
        ],
    }
    headers = {"authorization": f"Bearer {api_key}"}
    async with (
        httpx.AsyncClient(timeout=60) as client,
        client.stream("POST", f"{BASE_URL}/chat/completions", json=request, headers=headers) as response,
    ):
        response.raise_for_status()
        async for line in response.aiter_lines():
            data = line.removeprefix("data:").strip() if line.startswith("data:") else ""
            if data in ("", "[DONE]"):
                continue
            choices = json.loads(data)["choices"]
            if choices:
                yield choices[0].get("delta", {}).get("content") or ""
