"""The chat service: a health answer with a version, and a chat endpoint over a local model."""

import os

from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware
from model import EchoModel
from pydantic import BaseModel, Field

VERSION = "1.0.0"

app = FastAPI(title="llm-chat", version=VERSION)
app.add_middleware(
    CORSMiddleware,
    allow_origins=os.environ.get("CORS_ORIGINS", "*").split(","),
    allow_methods=["GET", "POST"],
    allow_headers=["Content-Type"],
)
model = EchoModel(os.environ.get("MODEL_NAME", "echo"))


class ChatRequest(BaseModel):
    """What the frontend sends."""

    message: str = Field(min_length=1, max_length=4000)


class ChatReply(BaseModel):
    """What it gets back."""

    model: str
    reply: str


@app.get("/api/health")
def health() -> dict[str, str]:
    """Say that the service is up, and which version of the source is running."""
    return {"status": "ok", "version": VERSION, "model": model.name}


@app.post("/api/chat")
def chat(request: ChatRequest) -> ChatReply:
    """Let the model answer one message."""
    return ChatReply(model=model.name, reply=model.answer(request.message))
