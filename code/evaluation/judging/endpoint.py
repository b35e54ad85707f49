"""The judge: an OpenAI-compatible endpoint. In: the messages of a question. Out: the text of the reply and its tokens.

Where it is comes from the environment: JUDGE_URL (up to /v1), JUDGE_MODEL, JUDGE_API_KEY. The key goes into the header
of the request and nowhere else; should the server send it back, it is blotted out.
"""

import http.client
import json
import random
import threading
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import NamedTuple
from urllib.parse import urlsplit

REQUEST = {"temperature": 0, "max_tokens": 512}  # of a reply: a reason in a few sentences, and the verdict
TIMEOUT = 300.0  # seconds until a call counts as failed
TRIES = 7  # of a call
FIRST_PAUSE = 1.0  # seconds after the first failure; doubles with each further one
LONGEST_PAUSE = 300.0  # that a server may ask for
RETRIED = {408, 409, 425, 429, *range(500, 600)}
LONGEST_REASON = 300  # characters of what a server says


class Unreachable(Exception):
    """The endpoint gives no reply for now; asking again later may help."""


class Reply(NamedTuple):
    """tokens: of prompt and reply together; None if the endpoint does not count them."""

    text: str
    tokens: int | None


class _Failed(Exception):
    """One try. pause: seconds that the server asks for."""

    def __init__(self, reason: str, pause: float | None = None):
        super().__init__(reason)
        self.pause = pause


@dataclass(frozen=True)
class Endpoint:
    """options: fields of the request beside model and messages. stop: ends all waiting before a next try."""

    url: str
    model: str
    key: str = field(repr=False)
    options: Mapping
    stop: threading.Event = field(default_factory=threading.Event)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str], options: str) -> "Endpoint":
        """options: of --judge-options. Raises ValueError."""
        url, model, key = (environment.get(f"JUDGE_{name}", "").strip() for name in ("URL", "MODEL", "API_KEY"))
        parts = urlsplit(url)
        if parts.username or parts.password or parts.query:
            raise ValueError("JUDGE_URL: it holds a key or a query; only JUDGE_API_KEY is kept out of files and logs")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{f'JUDGE_URL {url}'.strip()}: set it to the endpoint, such as http://localhost:8000/v1")
        if not all(33 <= ord(letter) <= 126 for letter in key):
            raise ValueError("JUDGE_API_KEY: it holds a space or a letter that no key has; set it again")
        if not model:
            raise ValueError("JUDGE_MODEL: set it to the name by which the endpoint knows the judge")
        try:
            changed = json.loads(options)
        except ValueError:
            changed = None
        if not isinstance(changed, dict):
            raise ValueError(f"--judge-options {options}: pass a JSON object, such as '{{\"max_tokens\": 1024}}'")
        request = {name: value for name, value in (REQUEST | changed).items() if value is not None}
        return cls(url.rstrip("/"), model, key, request)

    def ask(self, messages: Sequence[Mapping[str, str]]) -> Reply:
        """Tries again after failures that may pass. Raises Unreachable, or ValueError if the request is refused."""
        for attempt in range(TRIES):
            try:
                return self._call(messages)
            except _Failed as error:
                reason = f"{self.url}: {error}"
                pause = error.pause
            if pause is None:
                pause = FIRST_PAUSE * 2**attempt * random.uniform(0.5, 1)  # so that parallel calls do not come together
            if pause > LONGEST_PAUSE:
                raise Unreachable(f"{reason}, and asks to wait {pause:.0f} seconds")
            if attempt + 1 < TRIES and self.stop.wait(pause):
                break
        raise Unreachable(f"{reason} ({attempt + 1} tries)")

    def _call(self, messages: Sequence[Mapping[str, str]]) -> Reply:
        body = json.dumps({"model": self.model, "messages": list(messages), **self.options}).encode()
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self.key}"} if self.key else {})
        request = urllib.request.Request(f"{self.url}/chat/completions", body, headers)
        try:
            with _OPENER.open(request, timeout=TIMEOUT) as response:
                answer = json.loads(response.read())
            text = answer["choices"][0]["message"]["content"] or ""
            tokens = (answer.get("usage") or {}).get("total_tokens")
        except urllib.error.HTTPError as error:
            reason = f"HTTP {error.code} {self._said(error)}"
            if error.code not in RETRIED:
                raise ValueError(
                    f"JUDGE_URL {self.url}: {reason}; check JUDGE_URL, JUDGE_MODEL, JUDGE_API_KEY and --judge-options"
                ) from None
            raise _Failed(reason, _retry_after(error.headers.get("Retry-After"))) from None
        except (OSError, http.client.HTTPException) as error:  # no connection, cut off, too slow
            raise _Failed(self._without_key(str(getattr(error, "reason", error)) or type(error).__name__)) from None
        except (ValueError, LookupError, TypeError, AttributeError):
            raise _Failed("a reply that is no chat completion") from None
        return Reply(self._without_key(str(text)), tokens if isinstance(tokens, int) else None)

    def _said(self, error: urllib.error.HTTPError) -> str:
        try:
            said = error.read(LONGEST_REASON * 4).decode("utf-8", "replace")
        except (OSError, http.client.HTTPException):
            said = ""
        finally:
            error.close()
        return " ".join(self._without_key(f"{error.reason}: {said}").split())[:LONGEST_REASON]

    def _without_key(self, text: str) -> str:
        return text.replace(self.key, "***") if self.key else text


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirected request would take the key to another host."""

    def redirect_request(self, *_):
        return None


_OPENER = urllib.request.build_opener(_NoRedirect)


def _retry_after(value: str | None) -> float | None:
    """Seconds, from the header's two forms: seconds, or a date."""
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        date = parsedate_to_datetime(value)
    except ValueError:
        return None
    return max(0.0, (date.replace(tzinfo=date.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
