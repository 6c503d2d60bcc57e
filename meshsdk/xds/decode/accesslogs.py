"""`HttpConnectionManager.access_log` → `model.AccessLog`.

A log that this SDK cannot write, or whose filter it does not know, is left out with a note: it is
no reason to refuse the listener. What Envoy itself refuses, is refused.
"""

from __future__ import annotations

from typing import Any, Final

from envoy.data.accesslog.v3 import accesslog_pb2
from envoy.extensions.access_loggers.file.v3 import file_pb2
from envoy.extensions.access_loggers.stream.v3 import stream_pb2

from meshsdk.formats import FLAGS, Format, is_known_at_end
from meshsdk.model import AccessLog, JsonLine
from meshsdk.model.accesslogs import (
    Compares,
    Comparison,
    Either,
    Every,
    HasFlag,
    HasGrpcStatus,
    HasHeader,
    LogFilter,
    Measure,
    Sampled,
)
from meshsdk.xds.decode.common import (
    Bad,
    Notes,
    each,
    fraction,
    header_match,
    struct,
    sub,
    text_format,
    type_name,
    unpack,
)

DEFAULT_FORMAT: Final = (
    '[%START_TIME%] "%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%" '
    "%RESPONSE_CODE% %RESPONSE_FLAGS% %BYTES_RECEIVED% %BYTES_SENT% %DURATION% "
    '%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% "%REQ(X-FORWARDED-FOR)%" "%REQ(USER-AGENT)%" '
    '"%REQ(X-REQUEST-ID)%" "%REQ(:AUTHORITY)%" "%UPSTREAM_HOST%"\n'
)
"""Envoy's, where a log has none of its own."""

_LOGGERS: Final = "envoy.extensions.access_loggers."
_FILE: Final = f"{_LOGGERS}file.v3.FileAccessLog"
_STREAMS: Final = {
    f"{_LOGGERS}stream.v3.StdoutAccessLog": ("/dev/stdout", stream_pb2.StdoutAccessLog),
    f"{_LOGGERS}stream.v3.StderrAccessLog": ("/dev/stderr", stream_pb2.StderrAccessLog),
}


class _Unknown(Exception):
    """Something that this SDK does not have."""


def access_logs(messages: Any, notes: Notes) -> tuple[AccessLog, ...]:
    """The logs of a listener that this SDK writes."""
    found = each("access_log", messages, _access_log, notes)
    return tuple(log for log in found if log is not None)


def _access_log(message: Any, notes: Notes) -> AccessLog | None:
    kind = type_name(message.typed_config)
    if kind != _FILE and kind not in _STREAMS:
        notes.append(f"typed_config: {kind or 'a logger without a type'} is not written")
        return None
    try:
        chosen: LogFilter = Every()
        if message.HasField("filter"):
            chosen = sub("filter", _filter, message.filter, notes)
        path, form = sub("typed_config", _target, message.typed_config, notes)
    except _Unknown as unknown:
        notes.append(f"{unknown}: the log is not written")
        return None
    return AccessLog(path, form, chosen)


def _target(container: Any, notes: Notes) -> tuple[str, Format | JsonLine]:
    kind = type_name(container)
    if kind in _STREAMS:
        path, message_class = _STREAMS[kind]
        return path, _log_format(unpack(container, message_class), notes)
    message = unpack(container, file_pb2.FileAccessLog)
    if not message.path:
        raise Bad("path", "must not be empty")
    which = message.WhichOneof("access_log_format")
    if which == "format":
        return message.path, _text("format", message.format, "-", notes)
    if which in ("json_format", "typed_json_format"):
        document = _document(which, struct(getattr(message, which)), "-", notes)
        return message.path, JsonLine(document)
    return message.path, _log_format(message, notes)


def _log_format(message: Any, notes: Notes) -> Format | JsonLine:
    if not message.HasField("log_format"):
        return Format(DEFAULT_FORMAT, "-")
    return sub("log_format", _format, message.log_format, notes)


def _format(message: Any, notes: Notes) -> Format | JsonLine:
    which = message.WhichOneof("format")
    missing = "" if message.omit_empty_values else "-"
    if message.formatters:
        raise _Unknown("formatters of their own")
    if which == "text_format":
        return _text("text_format", message.text_format, missing, notes)
    if which == "json_format":
        document = _document("json_format", struct(message.json_format), missing, notes)
        return JsonLine(document, message.omit_empty_values)
    if which == "text_format_source":
        source = message.text_format_source
        if source.WhichOneof("specifier") != "inline_string":
            raise _Unknown("text_format_source.inline_string alone is read")
        return _text("text_format_source.inline_string", source.inline_string, missing, notes)
    raise Bad("format", "text_format, json_format or text_format_source is needed")


def _text(field: str, text: str, missing: str, notes: Notes) -> Format:
    form = text_format(field, text, missing=missing)
    for operator in form.operators:
        if not is_known_at_end(operator):
            notes.append(f"{field}: %{operator}% is not known here")
    return form


def _document(field: str, value: Any, missing: str, notes: Notes) -> Any:
    if isinstance(value, str):
        return _text(field, value, missing, notes)
    if isinstance(value, dict):
        return {key: _document(field, value[key], missing, notes) for key in sorted(value)}
    if isinstance(value, list):
        return [_document(field, part, missing, notes) for part in value]
    return value


# --- filters -----------------------------------------------------------------------------------


def _filter(message: Any, notes: Notes) -> LogFilter:
    which = message.WhichOneof("filter_specifier")
    if which is None:
        raise Bad("", "a filter is needed")
    read = _FILTERS.get(which)
    if read is None:
        raise _Unknown(f"the filter {which}")
    found: LogFilter = sub(which, read, getattr(message, which), notes)
    return found


def _compares(measure: Measure) -> Any:
    def read(message: Any, notes: Notes) -> LogFilter:
        comparison = message.comparison
        if not message.HasField("comparison") or not comparison.HasField("value"):
            raise Bad("comparison.value", "is needed")
        if comparison.op not in (0, 1, 2, 3):
            raise Bad("comparison.op", f"{comparison.op} is not known")
        return Compares(measure, Comparison(comparison.op), comparison.value.default_value)

    return read


def _not_health_check(message: Any, notes: Notes) -> LogFilter:
    return Every()  # no call of an application is a health check of the mesh


def _traceable(message: Any, notes: Notes) -> LogFilter:
    notes.append("is not honoured: calls are logged whether they are traced or not")
    return Every()


def _runtime(message: Any, notes: Notes) -> LogFilter:
    if not message.runtime_key:
        raise Bad("runtime_key", "must not be empty")
    return Sampled(fraction("percent_sampled", message.percent_sampled))


def _every(message: Any, notes: Notes) -> LogFilter:
    return Every(_parts(message, notes))


def _either(message: Any, notes: Notes) -> LogFilter:
    return Either(_parts(message, notes))


def _parts(message: Any, notes: Notes) -> tuple[LogFilter, ...]:
    if len(message.filters) < 2:
        raise Bad("filters", "at least two are needed")
    return tuple(each("filters", message.filters, _filter, notes))


def _header(message: Any, notes: Notes) -> LogFilter:
    return HasHeader(sub("header", header_match, message.header, notes))


def _response_flag(message: Any, notes: Notes) -> LogFilter:
    for flag in message.flags:
        if flag not in _ENVOY_FLAGS:
            raise Bad("flags", f"{flag!r} is not a response flag")
    return HasFlag(tuple(message.flags))


def _grpc_status(message: Any, notes: Notes) -> LogFilter:
    return HasGrpcStatus(frozenset(message.statuses), message.exclude)


def _log_type(message: Any, notes: Notes) -> LogFilter:
    takes = (accesslog_pb2.AccessLogType.DownstreamEnd in message.types) != message.exclude
    return Every() if takes else Either()


_FILTERS: Final = {
    "and_filter": _every,
    "duration_filter": _compares(Measure.DURATION),
    "grpc_status_filter": _grpc_status,
    "header_filter": _header,
    "log_type_filter": _log_type,
    "not_health_check_filter": _not_health_check,
    "or_filter": _either,
    "response_flag_filter": _response_flag,
    "runtime_filter": _runtime,
    "status_code_filter": _compares(Measure.STATUS),
    "traceable_filter": _traceable,
}

_ENVOY_FLAGS: Final = frozenset(FLAGS) | {
    "LH", "LR", "FI", "IH", "SI", "DPE", "UPE", "RFCF", "NFCF", "DT", "OM", "RLSE", "DF", "DR",
    "UDO", "DO",
}  # fmt: skip
