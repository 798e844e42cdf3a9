"""What a client may not do to the others: bodies that are too large or never end, and keys that are wrong.

Plain ASGI, so that a body is counted as it arrives and nothing of a refused one is kept.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from fastpower.integrations.server.responses import error

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class Guard:
    """Answers 401 to a wrong key, 413 to a large body and 408 to a slow one before the application sees them.

    Args:
        app: What is guarded.
        api_key: Clients must send ``Authorization: Bearer KEY``; None: nobody needs one. ``/health`` never does.
        max_body: Bytes.
        body_seconds: How long a body may take to arrive.
    """

    def __init__(self, app: App, *, api_key: str | None, max_body: int, body_seconds: float) -> None:
        self.app = app
        self.key = None if api_key is None else api_key.encode()
        self.max_body = max_body
        self.body_seconds = body_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        if self.key is not None and scope["path"] != "/health":
            scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
            if scheme.lower() != b"bearer" or not secrets.compare_digest(given.strip(), self.key):
                await _refuse(send, 401, "give the server's key as Authorization: Bearer KEY", "invalid_api_key")
                return
        try:
            announced = int(headers.get(b"content-length", b"0"))
        except ValueError:
            announced = self.max_body + 1
        body, more = bytearray(), announced <= self.max_body
        too_large = not more
        try:
            async with asyncio.timeout(self.body_seconds):
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return
                    body += message.get("body", b"")
                    more = message.get("more_body", False)
                    if len(body) > self.max_body:
                        too_large, more = True, False
        except TimeoutError:
            await _refuse(send, 408, f"the body did not arrive within {self.body_seconds:g} seconds", "timeout")
            return
        if too_large:
            await _refuse(send, 413, f"the body is larger than {self.max_body} bytes", "too_large")
            return
        first = True

        async def replay() -> Message:
            nonlocal first
            if first:
                first = False
                return {"type": "http.request", "body": bytes(body), "more_body": False}
            return await receive()

        await self.app(scope, replay, send)


async def _refuse(send: Send, status: int, message: str, code: str) -> None:
    body = json.dumps(error(message, "invalid_request_error", code=code)).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": status, "headers": [*headers, (b"connection", b"close")]})
    await send({"type": "http.response.body", "body": body})
