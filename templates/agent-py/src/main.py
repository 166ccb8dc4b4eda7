import os

import uvicorn
from fastapi import FastAPI
from fastapi.responses import PlainTextResponse, StreamingResponse
from pydantic import AliasChoices, BaseModel, Field

from agent import agent

app = FastAPI(title="{{name}}")


class Message(BaseModel):
    # Some clients write one word, some the other.
    inputs: str = Field(validation_alias=AliasChoices("inputs", "input"))


@app.get("/", response_class=PlainTextResponse)
async def hint() -> str:
    return 'Ask me: POST {"inputs": "..."} to this address.\n'


@app.post("/")
async def ask(message: Message) -> StreamingResponse:
    return StreamingResponse(agent(message.inputs), media_type="text/plain; charset=utf-8")


if __name__ == "__main__":
    # The platform says where to listen.
    uvicorn.run(app, host=os.getenv("HOST", "127.0.0.1"), port=int(os.getenv("PORT", "1338")))
