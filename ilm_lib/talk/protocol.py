"""The OpenAI chat protocol: what a request may hold, what it is answered with, and how errors look.

What a model has no use for is ignored where that is harmless (`IGNORED`). What would change what a client gets is
refused unless it asks for nothing (`NOTHING`), and so is what is no field of the protocol: it may be a misspelling.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ilm_lib.model.chat import Message
from ilm_lib.model.refusals import brief
from ilm_lib.talk.marks import Marks
from ilm_lib.talk.model_argument import MAX_K

MAX_BODY = 1 << 17  # bytes of a request
MAX_MESSAGES = 128
MAX_QUERY = 200  # characters of a search for titles
IGNORED = frozenset(
    "frequency_penalty max_completion_tokens max_tokens metadata parallel_tool_calls presence_penalty prompt_cache_key "
    "prompt_cache_retention reasoning_effort safety_identifier seed service_tier store temperature top_p user "
    "verbosity".split()
)
#: Of fields that are not supported, the values that ask for nothing.
NOTHING: dict[str, tuple[Any, ...]] = {
    "audio": (None,),
    "function_call": (None, "none"),
    "functions": (None, []),
    "logit_bias": (None, {}),
    "logprobs": (None, False),
    "modalities": (None, ["text"]),
    "moderation": (None,),
    "n": (None, 1),
    "prediction": (None,),
    "response_format": (None, {"type": "text"}),
    "stop": (None, []),
    "tool_choice": (None, "none", "auto"),
    "tools": (None, []),
    "top_logprobs": (None, 0),
    "web_search_options": (None,),
}
#: The same of a message; a client may send back what it was answered.
NOTHING_SAID: dict[str, tuple[Any, ...]] = {
    "annotations": (None, []),
    "audio": (None,),
    "function_call": (None,),
    "refusal": (None,),
    "tool_calls": (None, []),
}
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
Json = dict[str, Any]


class ProtocolError(Exception):
    """What a client is told in the place of an answer.

    Attributes:
        status: of HTTP.
        param: the field that is wrong.
        code: for programs.
        headers: that go with it.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.param, self.code, self.headers = status, param, code, headers

    @property
    def body(self) -> Json:
        """The error in the protocol's form."""
        kinds = {429: "rate_limit_error", 403: "permission_error"}
        kind = kinds.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


@dataclass
class Asked:
    """A request, checked.

    Attributes:
        messages: with Items in the place of their marks.
        k: items to recommend.
        seen, rejected: titles and ids of what is not recommended; what is rejected does not count as liked either.
        tokens: the items named are read with their tokens and vectors; else by their titles alone.
        writes: the LLM writes of each item; else the reply names them alone.
        ids: items are written as `<item:ID>`.
        stream: the answer comes as it is written.
        usage: a stream ends with its numbers of tokens.
    """

    messages: list[Message]
    k: int
    seen: list[str] = field(default_factory=list)
    rejected: list[str] = field(default_factory=list)
    tokens: bool = True
    writes: bool = True
    ids: bool = False
    stream: bool = False
    usage: bool = False


def read_request(body: bytes, model: str, k: int, marks: Marks) -> Asked:
    """The request of a body.

    Args:
        model: the name of the only model there is.
        k: items to recommend where the request does not say.

    Raises:
        ProtocolError: it cannot be answered; the message names the field and says what to give.
    """
    try:
        given = json.loads(body)
    except (ValueError, RecursionError):
        raise ProtocolError("the body is no JSON in UTF-8", code="invalid_json") from None
    if not isinstance(given, dict):
        raise ProtocolError("the body is no JSON object: give {'model': ..., 'messages': [...]}")
    known = {"model", "messages", "stream", "stream_options", "ilm"} | IGNORED
    _only(given, known, NOTHING, "")
    if (name := given.get("model")) != model:
        if not isinstance(name, str):
            raise ProtocolError(f"model is missing: give {model!r}", param="model")
        says = f"there is no model {brief(name)} here, only {model!r}"
        raise ProtocolError(says, status=404, param="model", code="model_not_found")
    messages = given.get("messages")
    if not isinstance(messages, list) or not messages:
        raise ProtocolError("messages are missing: give a list of {'role': ..., 'content': ...}", param="messages")
    if len(messages) > MAX_MESSAGES:
        says = f"there are {len(messages):,} messages, and {MAX_MESSAGES} may be sent: leave out the oldest"
        raise ProtocolError(says, param="messages", code="too_many_messages")
    options = _object(given, "stream_options")
    _only(options, {"include_usage", "include_obfuscation"}, {}, "stream_options.")
    asked = Asked(
        [_message(message, f"messages[{n}]", marks) for n, message in enumerate(messages)],
        k,
        stream=_flag(given, "stream"),
        usage=_flag(options, "include_usage", "stream_options."),
    )
    _read_own(_object(given, "ilm"), asked)
    return asked


def _read_own(own: Json, asked: Asked) -> None:
    """What the field `ilm` asks for."""
    _only(own, {"k", "seen", "rejected", "tokens", "writes", "items"}, {}, "ilm.")
    k, items = own.get("k", asked.k), own.get("items", "title")
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= MAX_K:
        raise ProtocolError(f"ilm.k is {brief(k)}: give a whole number from 1 to {MAX_K}", param="ilm.k")
    for key in ("seen", "rejected"):
        names = own.get(key, [])
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ProtocolError(f"ilm.{key} is no list of ids and titles", param=f"ilm.{key}")
        setattr(asked, key, names)
    if items not in ("id", "title"):
        raise ProtocolError(f"ilm.items is {brief(items)}: give 'id' or 'title'", param="ilm.items")
    asked.k, asked.ids = k, items == "id"
    asked.tokens, asked.writes = _flag(own, "tokens", "ilm.", True), _flag(own, "writes", "ilm.", True)


def read_search(given: Mapping[str, str]) -> tuple[str, int]:
    """What `GET /v1/items` looks for, and how many items it may give. Raises ProtocolError."""
    _only(dict(given), {"query", "limit"}, {}, "")
    query, limit = given.get("query", ""), given.get("limit", "8")
    if len(query) > MAX_QUERY:
        raise ProtocolError(f"query is longer than {MAX_QUERY} characters: give a part of a title", param="query")
    if not (limit.isascii() and limit.isdigit() and len(limit) < 4 and 1 <= int(limit) <= MAX_K):
        raise ProtocolError(f"limit is {brief(limit)}: give a whole number from 1 to {MAX_K}", param="limit")
    return query, int(limit)


def _message(message: object, where: str, marks: Marks) -> Message:
    if not isinstance(message, dict):
        raise ProtocolError(f"{where} is {brief(message)}: give {{'role': ..., 'content': ...}}", param=where)
    _only(message, {"role", "content", "name"}, NOTHING_SAID, f"{where}.")
    role, content = message.get("role"), message.get("content")
    if not isinstance(role, str) or role not in ROLES:
        says = f"{where}.role is {brief(role)}: give one of {', '.join(ROLES)}"
        raise ProtocolError(says, param=f"{where}.role")
    if isinstance(content, list):
        content = "".join(_text(part, f"{where}.content[{n}]") for n, part in enumerate(content))
    if not isinstance(content, str):
        says = f"{where}.content is {brief(content)}: give a text, or a list of {{'type': 'text', 'text': ...}}"
        raise ProtocolError(says, param=f"{where}.content")
    # What the system says is no talk of items: its marks stay what they are.
    return {"role": ROLES[role], "content": content if ROLES[role] == "system" else marks.read(content)}


def _text(part: object, where: str) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    text = part.get(kind) if isinstance(part, dict) and kind in ("text", "refusal") else None
    if not isinstance(text, str):
        raise ProtocolError(f"{where} is no {{'type': 'text', 'text': ...}}: text alone is read", param=where)
    return text


def _only(given: Json, known: set[str] | frozenset[str], nothing: Mapping[str, tuple[Any, ...]], where: str) -> None:
    """Refuse fields that are unknown, and those that are not supported and ask for something."""
    for key, value in given.items():
        if key in nothing:
            if not any(type(value) is type(harmless) and value == harmless for harmless in nothing[key]):
                says = f"{where}{key} is not supported: leave it out"
                raise ProtocolError(says, param=f"{where}{key}", code="unsupported_parameter")
        elif key not in known:
            says = f"there is no field {brief(where + key)}: leave it out"
            raise ProtocolError(says, param=f"{where}{key}"[:80], code="unknown_parameter")


def _object(given: Json, key: str) -> Json:
    if not isinstance(value := given.get(key) or {}, dict):
        raise ProtocolError(f"{key} is {brief(value)}: give an object", param=key)
    return value


def _flag(given: Json, key: str, where: str = "", usual: bool = False) -> bool:
    if (value := given.get(key)) is None:
        return usual
    if not isinstance(value, bool):
        raise ProtocolError(f"{where}{key} is {brief(value)}: give true or false", param=f"{where}{key}")
    return value


@dataclass
class Answer:
    """The answer to a request, as it grows.

    Attributes:
        recommended: of each item what `Cards.card` shows and log_probability (nats), best first.
        named: ids and titles of what had been named before.
        heard: the last message as it was understood: texts, and cards of the items named.
        prompt_tokens, completion_tokens: lengths of the messages, as they were understood, and of the reply.
        items: of each item in the reply id and title, and where it stands: `start` to `end` in characters (Unicode
            code points) of the content.
    """

    model: str
    recommended: Sequence[Json]
    named: Sequence[Json]
    heard: Sequence[str | Json]
    prompt_tokens: int
    completion_tokens: int = 0
    content: str = ""
    items: list[Json] = field(default_factory=list)
    id: str = field(default_factory=lambda: f"chatcmpl-{secrets.token_hex(12)}")
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def usage(self) -> Json:
        total = self.prompt_tokens + self.completion_tokens
        own = {"prompt_tokens": self.prompt_tokens, "completion_tokens": self.completion_tokens}
        return own | {"total_tokens": total}

    @property
    def own(self) -> Json:
        """The field `ilm`."""
        return {"recommended": self.recommended, "named": self.named, "heard": self.heard, "items": self.items}

    def whole(self) -> Json:
        """The answer at once."""
        message = {"role": "assistant", "content": self.content, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
        return self._with("chat.completion", [choice], usage=self.usage, ilm=self.own)

    def chunk(self, delta: Json, finish: Literal["stop"] | None = None, **more: Any) -> Json:
        """A piece of a stream."""
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return self._with("chat.completion.chunk", [choice], **more)

    def last(self) -> Json:
        """The piece of a stream that holds its numbers of tokens."""
        return self._with("chat.completion.chunk", [], usage=self.usage)

    def _with(self, kind: str, choices: list[Json], **more: Any) -> Json:
        own = {"id": self.id, "object": kind, "created": self.created, "model": self.model, "choices": choices}
        return own | more


def as_json(value: Json) -> bytes:
    """JSON in ASCII: a title may hold what is no valid Unicode."""
    return json.dumps(value).encode("ascii")


def event(value: Json | None) -> bytes:
    """A server-sent event; None: the last one."""
    return b"data: " + (b"[DONE]" if value is None else as_json(value)) + b"\n\n"
