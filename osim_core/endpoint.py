"""What every client of an OpenAI-compatible server needs to know: its address, its key, and which failures pass.

Used by the context writer (corpus/context/endpoint.py), the HTTP judge (judge/http_judge.py) and partners over HTTP.
"""

import os

MAX_ANSWER_BYTES = 2**20
MAX_PAUSE_S = 60.0
FATAL = (401, 403, 404)  # wrong key, model or address: the same for every request
TRANSIENT = (408, 409, 425, 429)


def chat_url(base_url: str, what: str) -> str:
    """The address of chat completions below `base_url`. Raises ValueError, naming `what`, if it is not http(s)."""
    if not base_url.startswith(("http://", "https://")):
        raise ValueError(f"{what}: {base_url!r} is not an http:// or https:// address")
    return f"{base_url.rstrip('/')}/chat/completions"


def headers(key_variable: str) -> dict[str, str]:
    """Headers of a request, with the bearer token that the environment variable holds, if it holds one."""
    found = {"Content-Type": "application/json"}
    if key := os.environ.get(key_variable):
        found["Authorization"] = f"Bearer {key}"
    return found


def passes(status: int) -> bool:
    """Whether the same request may succeed later."""
    return status >= 500 or status in TRANSIENT


def asked_pause(retry_after: str | None, otherwise: float) -> float:
    """Retry-After in seconds; its other form, a date, is not worth a clock comparison."""
    return float(retry_after) if retry_after and retry_after.isdigit() else otherwise
