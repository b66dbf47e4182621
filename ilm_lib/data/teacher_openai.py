"""A teacher of the ELM-24 tasks behind a server that speaks the OpenAI chat protocol: vLLM, llama.cpp, and others."""

from __future__ import annotations

import json
import random
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, as_completed
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import requests

from ilm_lib.data.api_key import ApiKey
from ilm_lib.data.teachers import MAX_TOKENS, LanguageModelTeacher, TeacherError

T = TypeVar("T")

RETRIED = (408, 429)  # and 500 and above
MAX_WAIT = 600.0  # seconds; a server that asks for more is better asked tomorrow
MAX_BYTES = 1 << 20  # of an answer; one of 60 words takes some thousand
CHECKS = {
    401: "the key",
    403: "the key and what it may be used for",
    404: "that the URL ends as the server wants it, mostly in /v1, and that the model has this name there",
}


class Reply(NamedTuple):
    """What a server sent, or `wrong` in place of it."""

    status: int = 0
    headers: Any = None
    data: bytes = b""
    wrong: str = ""


class OpenAITeacher(LanguageModelTeacher):
    """Answers at temperature 0 from POST {url}/chat/completions, several requests at a time.

    Redirects are not followed: the key is for this server alone.

    Args:
        url: e.g. http://localhost:8000/v1.
        model: its name there.
        answers: file of answers.
        key_env: the name of the environment variable with the API key; unset or None: none is sent. The key itself
            is neither stored nor shown, and an answer that holds it is not kept.
        concurrency: requests at a time.
        timeout: seconds until an answer must be there, all of it.
        tries: of a request, on 408, 429, 5xx and failed connections, with waits of `backoff` seconds, doubled each
            time, or what the server says in Retry-After if that is longer.

    Raises:
        TeacherError: the URL or the key cannot be used.
    """

    def __init__(
        self,
        url: str,
        model: str,
        answers: Path,
        *,
        key_env: str | None = "OPENAI_API_KEY",
        max_tokens: int = MAX_TOKENS,
        concurrency: int = 8,
        timeout: float = 120.0,
        tries: int = 6,
        backoff: float = 1.0,
    ):
        super().__init__("openai", model, answers, max_tokens)
        self.name = f"openai:{model}"  # a folder of that name here is not the model there
        self.url, self.api_key = url.rstrip("/"), ApiKey(key_env)
        if not _can_be_asked(url) or self.api_key.shown_in(url):
            raise TeacherError(
                "elm24.teacher_url is http://HOST/PATH or https://HOST/PATH, without user, password or query; "
                "a key goes into the environment variable that elm24.teacher_key_env names"
            )
        self.concurrency, self.timeout, self.tries, self.backoff = concurrency, timeout, tries, backoff
        self._local = threading.local()

    def ask(self, instructions: Sequence[str]) -> Iterator[tuple[int, str]]:
        stop, failure = threading.Event(), None
        with ThreadPoolExecutor(self.concurrency) as pool:
            futures = {pool.submit(self._answer_unless, stop, text): i for i, text in enumerate(instructions)}
            try:
                # After a failure nothing new is sent, but answers on their way are kept.
                for future in as_completed(futures):
                    if future.cancelled():
                        continue
                    error = future.exception()
                    if isinstance(error, CancelledError):
                        continue
                    if error:
                        failure = failure or error
                        _stop(stop, futures)
                    else:
                        yield futures[future], future.result()
            finally:
                _stop(stop, futures)
        if failure:
            raise failure

    def _answer_unless(self, stop: threading.Event, instruction: str) -> str:
        """`_answer`, unless another request has failed; whoever fails stops the others at once."""
        if stop.is_set():
            raise CancelledError
        try:
            return self._answer(instruction, stop)
        except Exception:
            stop.set()
            raise

    def _answer(self, instruction: str, stop: threading.Event) -> str:
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": instruction}],
            "max_tokens": self.max_tokens,
            "temperature": 0,
        }
        wait, wrong = self.backoff, ""
        for attempt in range(1, self.tries + 1):
            reply, asked_for = self._post(body), 0.0
            if 200 <= reply.status < 300:
                return self._content(reply.data)
            wrong = reply.wrong
            if not wrong:
                wrong = f"HTTP {reply.status}: {self._said(reply.data)}"
                if reply.status not in RETRIED and reply.status < 500:
                    raise self._refused(reply, wrong)
                asked_for = retry_after(reply.headers.get("Retry-After"))
            delay = max(asked_for, wait * random.uniform(1, 1.25))  # noqa: S311 (not all at the same moment)
            if asked_for > MAX_WAIT:
                raise self._error(f"{wrong}; to be asked again in {asked_for:.6g} s", "its limits")
            if attempt < self.tries and stop.wait(delay):
                raise self._error(wrong, "the error before this one")
            wait *= 2
        raise self._error(f"{wrong}, {self.tries} times", "that the server runs and takes as many requests at a time")

    def _post(self, body: dict[str, Any]) -> Reply:
        """One request; a failure that may pass is told in the reply, any other is a TeacherError."""
        session = self._session()
        try:
            return _within(self.timeout, lambda: self._read(session, body))
        except TimeoutError:
            del self._local.session  # the one that still waits has it
            return Reply(wrong=f"no answer in {self.timeout:g} s")
        except (requests.RequestException, ValueError) as error:  # a ValueError where a chunk has no length
            return Reply(wrong=f"no answer ({type(error).__name__})")

    def _read(self, session: requests.Session, body: dict[str, Any]) -> Reply:
        with session.post(
            f"{self.url}/chat/completions",
            json=body,
            auth=self._sign,  # a function, so that no ~/.netrc is looked into
            headers={"Accept-Encoding": "identity"},  # a small file can unpack to a large one
            timeout=(10, self.timeout),
            stream=True,
            allow_redirects=False,
        ) as response:
            if (coding := response.headers.get("Content-Encoding", "identity")) != "identity":
                raise self._error(f"an answer packed as {self._short(coding)}", "the server, or a proxy before it")
            data = b""
            for part in response.iter_content(1 << 16):
                data += part
                if len(data) > MAX_BYTES:
                    raise self._error("an answer of more than 1 MB", "that the server heeds max_tokens")
            return Reply(response.status_code, response.headers, data)

    def _session(self) -> requests.Session:
        if not hasattr(self._local, "session"):  # sessions are not made for several threads
            self._local.session = requests.Session()
        return self._local.session

    def _sign(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self.api_key.value():
            request.headers["Authorization"] = f"Bearer {self.api_key.value()}"
        return request

    def _content(self, data: bytes) -> str:
        """The text of an answer; "" where there is none. A list of parts is its parts' text."""
        choices, content = True, None
        try:
            content = json.loads(data)["choices"][0]["message"].get("content")
            if isinstance(content, list):
                content = "".join(part.get("text") or "" for part in content)
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            choices = False
        if not choices or not isinstance(content, str | None):
            what = "whose content is no text" if choices else "without choices"
            raise self._error(
                f"an answer {what}: {self._short(data.decode(errors='replace'))!r}",
                "that the server speaks the OpenAI chat protocol",
            )
        if self.api_key.shown_in(content or ""):
            raise self._error("an answer with the API key in it, which is not kept", "whose server this is")
        return content or ""

    def _said(self, data: bytes) -> str:
        """The server's message, in the forms that OpenAI, vLLM and llama.cpp give it."""
        try:
            said: Any = json.loads(data)
            for name in ("error", "message", "detail"):
                said = said.get(name, said) if isinstance(said, dict) else said
        except (ValueError, RecursionError):
            said = data.decode(errors="replace")
        return self._short(" ".join(str(said).split()) or "no message")

    def _short(self, said: str) -> str:
        return self.api_key.hidden(said)[:70]  # in this order: half a key could not be recognised

    def _refused(self, reply: Reply, wrong: str) -> TeacherError:
        if 300 <= reply.status < 400:
            where = self._short(reply.headers.get("Location", "another place"))
            return self._error(f"HTTP {reply.status}: it sends on to {where}", "the URL; give the last one")
        return self._error(wrong, CHECKS.get(reply.status, "the model's name and its limits"))

    def _error(self, wrong: str, check: str) -> TeacherError:
        key = "none is set" if not self.api_key.value() else "it is sent"
        if check.startswith("the key"):
            check += (
                f", from the environment variable {self.api_key.variable}: {key}"
                if self.api_key.variable
                else ": none is sent"
            )
        return TeacherError(
            f"{self.url[:60]}, model {self.model[:40]!r}: {self.api_key.hidden(wrong)}. Check {check}. "
            "Answers so far are kept; run again to go on"
        )


def _can_be_asked(url: str) -> bool:
    try:
        requests.Request("POST", url).prepare()
    except (requests.RequestException, ValueError):
        return False
    return re.fullmatch(r"https?://[^\s@?#]+", url) is not None


def _within(seconds: float, call: Callable[[], T]) -> T:
    """What `call` returns, or TimeoutError: it is left alone where a server sends so slowly that it never ends."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future.result(seconds)


def _stop(stop: threading.Event, futures: dict) -> None:
    stop.set()
    for future in futures:
        future.cancel()


def retry_after(value: str | None) -> float:
    """Seconds of a Retry-After header, given as seconds or as a date; 0 if there is none or it is neither."""
    try:
        return max(0.0, float(value or 0))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (TypeError, ValueError, OverflowError):
        return 0.0
