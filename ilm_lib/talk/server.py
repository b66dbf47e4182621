"""The endpoint: HTTP around a model that talks. The messages of its clients are neither written down nor logged."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, NamedTuple, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from ilm_lib.errors import Refusal
from ilm_lib.model.ilm import ILM
from ilm_lib.model.prompts import Item, Prompt
from ilm_lib.model.refusals import TooLong, UnknownName
from ilm_lib.talk import web
from ilm_lib.talk.cards import Cards
from ilm_lib.talk.line import Busy, Line, Place
from ilm_lib.talk.marks import Marks
from ilm_lib.talk.protocol import (
    MAX_BODY,
    Answer,
    Asked,
    Json,
    ProtocolError,
    as_json,
    event,
    read_request,
    read_search,
)

T = TypeVar("T")
log = logging.getLogger(__name__)
TO_SEND = 30.0  # seconds in which a body must have come
TOO_MUCH = 1 << 24  # bytes of a body that are let pass: who is cut off while sending does not hear why


class Begun(NamedTuple):
    """What is known before the first word of a reply, as `Answer` has it."""

    recommended: list[Json]
    named: list[Json]
    heard: list[str | Json]
    tokens: int


class Told(NamedTuple):
    """What is known after the last word: the length of the reply in tokens."""

    tokens: int


class Endpoint:
    """Answers requests with the replies of one model.

    Args:
        ilm: a model that was trained on dialogues; no other thread may use it meanwhile.
        name: of the model, for clients.
        k: items to recommend where a request does not say.
        waiting: requests that may wait behind the one that is answered.
    """

    def __init__(self, ilm: ILM, name: str, k: int = 3, waiting: int = 8):
        self.ilm, self.name, self.k = ilm, name, k
        self.marks, self.cards = Marks(ilm.names()), Cards(ilm.names())
        self.line, self.since = Line(waiting), int(time.time())

    def app(self, hosts: frozenset[str] | None = None) -> ASGIApp:
        """The application.

        Args:
            hosts: the names by which it may be called; None: any. A page in a browser can get a name of its own to
                lead to this machine, and then read what a server on it says.
        """

        @asynccontextmanager
        async def life(app: Starlette) -> AsyncIterator[None]:
            yield
            await self.line.close()

        routes = [
            *web.routes(),
            Route("/health", self.health),
            Route("/v1/items", self.items),
            Route("/v1/models", self.models),
            Route("/v1/models/{name:path}", self.one_model),
            Route("/v1/chat/completions", self.complete, methods=["POST"]),
        ]
        handlers: dict[Any, Any] = {
            ProtocolError: wrong,
            HTTPException: not_found,
            ClientDisconnect: lambda *_: Response(status_code=499),  # nobody reads it
            Exception: failed,
        }
        app = Starlette(routes=routes, exception_handlers=handlers, lifespan=life)
        return app if hosts is None else CalledBy(app, hosts)

    async def health(self, request: Request) -> Response:
        return answered({"status": "ok", "model": self.name, "in_line": len(self.line.places)})

    async def models(self, request: Request) -> Response:
        return answered({"object": "list", "data": [self._model()]})

    async def one_model(self, request: Request) -> Response:
        if request.path_params["name"] != self.name:
            says = f"there is no such model here, only {self.name!r}"
            raise ProtocolError(says, status=404, param="model", code="model_not_found")
        return answered(self._model())

    async def items(self, request: Request) -> Response:
        """`GET /v1/items?query=toy&limit=8`: items by their titles; without a query the best known."""
        query, limit = read_search(request.query_params)
        found = lambda: [self.cards.card(item) for item in self.cards.search(query, limit)]
        return answered({"object": "list", "data": await asyncio.to_thread(found)})

    async def complete(self, request: Request) -> Response:
        """`POST /v1/chat/completions`."""
        asked = read_request(await body_of(request), self.name, self.k, self.marks)
        try:
            place = self.line.join(partial(self._replied, asked))
        except Busy as busy:
            says = f"{self.line.waiting} requests are waiting already: try again in {busy.seconds} s"
            headers = {"Retry-After": str(busy.seconds)}
            raise ProtocolError(says, status=429, code="rate_limit_exceeded", headers=headers) from None
        try:
            begun = await while_there(request, anext(place))
            assert isinstance(begun, Begun)
            answer = Answer(self.name, *begun)
            if asked.stream:
                return Stream(self._events(asked, answer, place), place)
            await while_there(request, self._whole(asked, answer, place))
            return answered(answer.whole())
        except BaseException as error:
            place.leave()
            if isinstance(error, Exception) and not isinstance(error, ClientDisconnect):
                raise as_told(error) from None
            raise

    def _model(self) -> Json:
        return {"id": self.name, "object": "model", "created": self.since, "owned_by": "ilm"}

    def _replied(self, asked: Asked) -> Iterator[Begun | str | Item | Told]:
        """The reply, in the thread that has the model."""
        try:
            seen, rejected = self._items(asked.seen, "ilm.seen"), self._items(asked.rejected, "ilm.rejected")
            how = {"tokens": asked.tokens, "writes": asked.writes}
            reply = self.ilm.chat(asked.messages, asked.k, seen=seen, rejected=rejected, **how)
            parts = [part for turn in reply.understood for part in turn["content"]]
            card, last = self.cards.card, reply.understood[-1]["content"]
            named = dict.fromkeys(part for part in parts if isinstance(part, Item))
            yield Begun(
                [card(one.item) | {"log_probability": one.log_probability} for one in reply.recommended],
                [{"id": self.ilm.id(item), "title": self.ilm.title(item)} for item in named],
                [card(part) if isinstance(part, Item) else str(part) for part in last],
                self._length(parts),
            )
            yield from reply
            yield Told(self._length([reply.text]))
        finally:
            self.ilm.prompts.text_ids.cache_clear()  # what somebody said is not kept

    def _items(self, names: list[str], field: str) -> list[Item]:
        """The items of a field of the request."""
        try:
            return [self.ilm.item(name) for name in names]
        except UnknownName as error:
            raise ProtocolError(str(error), param=field) from None

    def _length(self, prompt: Prompt) -> int:
        """Tokens of texts and items, without any that stands before every prompt."""
        return len(self.ilm.prompts.encode(prompt)[0]) - len(self.ilm.prompts.bos)

    async def _written(self, asked: Asked, answer: Answer, place: Place) -> AsyncIterator[str]:
        """The pieces of a reply; `answer` grows with them."""
        async for part in place:
            if isinstance(part, Told):
                answer.completion_tokens = part.tokens
                continue
            piece = self.marks.write(part, ids=asked.ids) if isinstance(part, Item) else part
            if isinstance(part, Item):
                stands = {"start": len(answer.content), "end": len(answer.content) + len(piece)}
                answer.items.append({"id": self.ilm.id(part), "title": self.ilm.title(part)} | stands)
            answer.content += piece
            yield piece

    async def _whole(self, asked: Asked, answer: Answer, place: Place) -> None:
        async for _ in self._written(asked, answer, place):
            pass

    async def _events(self, asked: Asked, answer: Answer, place: Place) -> AsyncIterator[bytes]:
        """The reply as server-sent events."""
        try:
            yield event(answer.chunk({"role": "assistant", "content": ""}, ilm=answer.own))
            async for piece in self._written(asked, answer, place):
                yield event(answer.chunk({"content": piece}))
            yield event(answer.chunk({}, "stop", ilm=answer.own))
            if asked.usage:
                yield event(answer.last())
            yield event(None)
        except Exception as error:  # the status is sent already: the error is an event
            yield event(as_told(error).body)


class Stream(StreamingResponse):
    """Events as they come; who hangs up leaves the line."""

    def __init__(self, events: AsyncIterator[bytes], place: Place):
        super().__init__(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        self.place = place

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.place.leave()


class CalledBy:
    """Lets those requests through that call the server by one of its names."""

    def __init__(self, app: ASGIApp, hosts: frozenset[str]):
        self.app, self.hosts = app, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            host = dict(scope["headers"]).get(b"host", b"").decode("latin-1").lower()
            if re.sub(r":[0-9]*$", "", host) not in self.hosts:
                says = f"this server answers to {', '.join(sorted(self.hosts))} alone"
                return await told(ProtocolError(says, status=403, code="unknown_host"))(scope, receive, send)
        await self.app(scope, receive, send)


FAILED = "the server failed; its log says how"


def answered(value: Json, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(as_json(value), status, web.UNSNIFFED | (headers or {}), "application/json")


def told(error: ProtocolError) -> Response:
    """An error in the protocol's form."""
    return answered(error.body, error.status, dict(error.headers or {}))


def as_told(error: Exception) -> ProtocolError:
    """What a client is told where a reply fails. A fault of ours is logged with its traceback."""
    if isinstance(error, ProtocolError):
        return error
    if not isinstance(error, Refusal):
        log.error("a reply failed", exc_info=error)
        return ProtocolError(FAILED, status=500, code="internal_error")
    code = "context_length_exceeded" if isinstance(error, TooLong) else None
    return ProtocolError(str(error), param="messages", code=code)


async def wrong(request: Request, error: ProtocolError) -> Response:
    return told(error)


async def not_found(request: Request, error: HTTPException) -> Response:
    known = "POST /v1/chat/completions, GET /v1/models, /v1/items, /health and the page at / are"
    says = f"{request.method} {request.url.path[:80]} is not here; {known}"
    return told(ProtocolError(says, status=error.status_code, code="unknown_url", headers=error.headers))


async def failed(request: Request, error: Exception) -> Response:
    """A fault of ours anywhere else. It goes on to the server, which logs it and closes the connection."""
    return told(ProtocolError(FAILED, status=500, code="internal_error", headers={"Connection": "close"}))


async def body_of(request: Request) -> bytes:
    """The body of a request, which may be no longer than `MAX_BODY` nor take longer than `TO_SEND`."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":  # a form of a page elsewhere can send the other kinds without being asked
        raise ProtocolError("the body must have the Content-Type application/json", status=415)
    body, length = bytearray(), 0
    try:
        async with asyncio.timeout(TO_SEND):
            async for piece in request.stream():
                length += len(piece)
                if length > TOO_MUCH:
                    break
                body += piece[: max(0, MAX_BODY - len(body))]
    except TimeoutError:
        raise ProtocolError("the body did not come in time", status=408, headers={"Connection": "close"}) from None
    if length > MAX_BODY:
        says = f"the body is longer than {MAX_BODY:,} bytes: leave out the oldest messages"
        raise ProtocolError(says, status=413, code="request_too_large", headers={"Connection": "close"})
    return bytes(body)


async def while_there(request: Request, wanted: Awaitable[T]) -> T:
    """What is wanted. Raises ClientDisconnect where the client hangs up before it is there."""
    task, gone = asyncio.ensure_future(wanted), asyncio.ensure_future(hung_up(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        task.cancel()
        gone.cancel()


async def hung_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
