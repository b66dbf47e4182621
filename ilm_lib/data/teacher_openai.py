"""A teacher of the ELM-24 tasks behind a server that speaks the OpenAI chat protocol: vLLM, llama.cpp, and others."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor, as_completed
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import requests

from ilm_lib.data.teachers import MAX_TOKENS, LanguageModelTeacher, TeacherError

RETRIED = (408, 429)  # and 500 and above
MAX_WAIT = 600.0  # seconds; a server that asks for more is better asked tomorrow
CHECKS = {
    401: "the key",
    403: "the key and what it may be used for",
    404: "that the URL ends as the server wants it, mostly in /v1, and that the model has this name there",
}


class OpenAITeacher(LanguageModelTeacher):
    """Answers at temperature 0 from POST {url}/chat/completions, several requests at a time.

    Args:
        url: e.g. http://localhost:8000/v1.
        model: its name there.
        answers: file of answers.
        key_env: the name of the environment variable with the API key; unset or None: none is sent. The key itself
            is neither stored nor shown.
        concurrency: requests at a time.
        timeout: seconds to wait for an answer.
        tries: of a request, on 408, 429, 5xx and failed connections, with waits of `backoff` seconds, doubled each
            time, or what the server says in Retry-After if that is longer.
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
        if key_env and not key_env.isidentifier():  # most likely the key itself: do not show it
            raise TeacherError(
                "elm24.teacher_key_env is the name of an environment variable, not the key; "
                "set the variable and give its name, e.g. OPENAI_API_KEY"
            )
        self.url, self.key_env = url.rstrip("/"), key_env
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
        wait = self.backoff
        for attempt in range(1, self.tries + 1):
            asked_for = 0.0
            try:
                response = self._session().post(
                    f"{self.url}/chat/completions", json=body, auth=self._sign, timeout=(10, self.timeout)
                )
                if response.ok:
                    return self._content(response)
                wrong = f"HTTP {response.status_code}: {self._said(response)}"
                if response.status_code not in RETRIED and response.status_code < 500:
                    raise self._error(wrong, CHECKS.get(response.status_code, "the model's name and its limits"))
                asked_for = retry_after(response.headers.get("Retry-After"))
            except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError) as error:
                wrong = f"no answer ({type(error).__name__})"
            except requests.RequestException as error:  # an invalid URL and the like
                raise self._error(self._hidden(str(error)), "the URL") from None
            delay = max(asked_for, wait * random.uniform(1, 1.25))  # not all at the same moment
            if asked_for > MAX_WAIT:
                raise self._error(f"{wrong}; to be asked again in {asked_for:.0f} s", "its limits")
            if attempt < self.tries and stop.wait(delay):
                raise self._error(wrong, "the error before this one")
            wait *= 2
        raise self._error(f"{wrong}, {self.tries} times", "that the server runs and takes as many requests at a time")

    def _session(self) -> requests.Session:
        if not hasattr(self._local, "session"):  # sessions are not made for several threads
            self._local.session = requests.Session()
        return self._local.session

    def _sign(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self._key():
            request.headers["Authorization"] = f"Bearer {self._key()}"
        return request

    def _key(self) -> str:
        return os.environ.get(self.key_env, "").strip() if self.key_env else ""

    def _content(self, response: requests.Response) -> str:
        try:
            return response.json()["choices"][0]["message"].get("content") or ""
        except (ValueError, LookupError, TypeError, AttributeError):
            raise self._error(
                f"an answer without choices: {self._hidden(response.text[:200])!r}",
                "that the server speaks the OpenAI chat protocol",
            ) from None

    def _said(self, response: requests.Response) -> str:
        """The server's message, in the forms that OpenAI, vLLM and llama.cpp give it."""
        try:
            said: Any = response.json()
            for name in ("error", "message", "detail"):
                said = said.get(name, said) if isinstance(said, dict) else said
        except ValueError:
            said = response.text
        return self._hidden(" ".join(str(said).split())[:400] or "no message")

    def _hidden(self, text: str) -> str:
        return text.replace(self._key(), "[key]") if self._key() else text

    def _error(self, wrong: str, check: str) -> TeacherError:
        key = "none is set" if not self._key() else "it is sent"
        if check.startswith("the key"):
            check += f", from the environment variable {self.key_env}: {key}" if self.key_env else ": none is sent"
        return TeacherError(
            f"{self.url}, model {self.model!r}: {wrong}. Check {check}. Answers so far are kept; run again to go on"
        )


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
    except (TypeError, ValueError):
        return 0.0
