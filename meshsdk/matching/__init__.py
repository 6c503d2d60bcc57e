"""Matchers as values: string, path, header, query parameter, cookie, metadata, fraction.

Built once by the decoders, asked on every call. Regular expressions are RE2 and match the whole
string, as in Envoy. Semantics: Envoy `config/route/v3/route_components.proto` and
`type/matcher/v3`.
"""

from meshsdk.matching.paths import PathKind, PathMatch
from meshsdk.matching.requests import (
    CookieMatch,
    HeaderMatch,
    HeaderSource,
    QueryMatch,
    cookies,
    first_query_value,
)
from meshsdk.matching.strings import ALWAYS, NEVER, Fraction, StringKind, StringMatch, compile_regex
from meshsdk.matching.templates import Template
from meshsdk.matching.values import MetadataMatch, ValueKind, ValueMatch

__all__ = [
    "ALWAYS",
    "NEVER",
    "CookieMatch",
    "Fraction",
    "HeaderMatch",
    "HeaderSource",
    "MetadataMatch",
    "PathKind",
    "PathMatch",
    "QueryMatch",
    "StringKind",
    "StringMatch",
    "Template",
    "ValueKind",
    "ValueMatch",
    "compile_regex",
    "cookies",
    "first_query_value",
]
