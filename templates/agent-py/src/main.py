import os

import uvicorn
from fastapi import FastAPI
from fastapi.responses import PlainTextResponse, StreamingResponse
from pydantic import BaseModel

from agent import agent

app = FastAPI(title="{{name}}")


class Message(BaseModel):
    inputs: str


@app.get("/", response_class=PlainTextResponse)
async def hint() -> str:
    return 'Ask me: POST {"inputs": "..."} to this address.\n'


@app.post("/")
async def ask(message: Message) -> StreamingResponse:
    return StreamingResponse(agent(message.inputs), media_type="text/plain; charset=utf-8")


if __name__ == "__main__":
    # The platform says where to listen.
    uvicorn.run(app, host=os.getenv("HOST", "127.0.0.1"), port=int(os.getenv("PORT", "1338")))
