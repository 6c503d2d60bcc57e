"""Small builders shared by everything that makes xDS messages."""

from __future__ import annotations

from envoy.config.core.v3 import config_source_pb2
from envoy.type.v3 import percent_pb2
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import Message

from controlplane.model.traffic import Percent

TYPE_PREFIX = "type.googleapis.com/"


def pack(message: Message) -> any_pb2.Any:
    """An Any whose bytes depend on the content only."""
    packed = any_pb2.Any()
    packed.Pack(message, deterministic=True)
    return packed


def duration(seconds: float) -> duration_pb2.Duration:
    value = duration_pb2.Duration()
    value.FromNanoseconds(round(seconds * 1e9))
    return value


def ads() -> config_source_pb2.ConfigSource:
    """From the stream on which this was received."""
    return config_source_pb2.ConfigSource(
        ads=config_source_pb2.AggregatedConfigSource(),
        resource_api_version=config_source_pb2.ApiVersion.V3,
    )


def fraction(percent: Percent | None, absent: float) -> percent_pb2.FractionalPercent:
    """A percentage in millionths, as Istio renders it."""
    value = absent if percent is None else percent.value
    return percent_pb2.FractionalPercent(
        numerator=round(value * 10_000), denominator=percent_pb2.FractionalPercent.MILLION
    )
