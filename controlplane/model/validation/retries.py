"""HTTPRetry, in rules and in mesh config."""

from __future__ import annotations

from http import HTTPStatus

from controlplane.model.validation.checks import Checker, Fields

RETRY_ON = frozenset(
    {
        "5xx",
        "gateway-error",
        "reset",
        "reset-before-request",
        "connect-failure",
        "retriable-4xx",
        "refused-stream",
        "retriable-status-codes",
        "retriable-headers",
        "envoy-ratelimited",
        "http3-post-connect-failure",
        "cancelled",
        "deadline-exceeded",
        "internal",
        "resource-exhausted",
        "unavailable",
    }
)
_STATUSES = frozenset(str(int(status)) for status in HTTPStatus)


def check_retries(check: Checker, retries: Fields, path: str) -> None:
    """A retry policy: attempts 0 switches retries off, and then nothing else may be said."""
    attempts = retries.get("attempts", 0)
    check.need(attempts >= 0, f"{path}.attempts", f"{attempts} is negative")
    others = [name for name in retries if name != "attempts" and retries[name] != ""]
    if attempts == 0 and others:
        check.error(path, f"attempts 0 switches retries off: {', '.join(others)} says more")
    check.durations(retries, path, "perTryTimeout", "backoff")
    for word in filter(None, retries.get("retryOn", "").split(",")):
        known = word in RETRY_ON or word in _STATUSES
        check.need(known, f"{path}.retryOn", f"{word!r} is not a retry condition")
