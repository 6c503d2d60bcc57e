"""Envoy's configuration as people write it."""

from __future__ import annotations

import pytest

from meshsdk.xds.document import message_of

ACTION = "envoy.config.route.v3.RouteAction"


def test_a_duration_has_nine_digits_after_the_point() -> None:
    """As Envoy reads it: the ninth digit counts, a tenth is refused and not rounded away."""
    timeout = message_of({"timeout": "3.123456789s"}, ACTION).timeout
    assert (timeout.seconds, timeout.nanos) == (3, 123_456_789)
    with pytest.raises(ValueError, match=r"RouteAction: .*timeout.*'3.1234567890s'.*nine digits"):
        message_of({"timeout": "3.1234567890s"}, ACTION)
