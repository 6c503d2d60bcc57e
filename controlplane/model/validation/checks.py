"""The collector of mistakes, and the checks that several kinds share."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import re2

from controlplane.model.duration import Duration
from controlplane.model.hosts import is_address
from controlplane.model.resource import Resource

_LABEL = re.compile(r"[a-zA-Z0-9](?:[-a-zA-Z0-9]*[a-zA-Z0-9])?")
_WILDCARD_LABEL = re.compile(r"\*|(?:\*|\*-)?[a-zA-Z0-9](?:[-a-zA-Z0-9]*[a-zA-Z0-9])?")
_HEADER = re.compile(r"[-_A-Za-z0-9]+")
_MATCHED_HEADER = re.compile(r":?[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_TAG_NAME = re.compile(r"(?:[a-zA-Z0-9][-a-zA-Z0-9_.]*)?[a-zA-Z0-9]")
_PARAMETERS = re.compile(r"(?<=[A-Z0-9_])\([^()]*\)")
CLAIM_PREFIX = "@request.auth.claims"
Fields = Mapping[str, Any]


class Checker:
    """What is wrong with one resource. The `check…` methods report at a path and return nothing."""

    def __init__(self, resource: Resource) -> None:
        self.resource = resource
        self.spec: Fields = resource.spec
        self.errors: list[tuple[str, str]] = []
        self.warnings: list[tuple[str, str, str]] = []

    def error(self, path: str, message: str) -> None:
        self.errors.append((path, message))

    def warn(self, path: str, message: str, code: str = "") -> None:
        self.warnings.append((path, code, message))

    def need(self, holds: Any, path: str, message: str) -> bool:
        """Reports unless the condition holds."""
        if not holds:
            self.error(path, message)
        return bool(holds)

    # --- values ------------------------------------------------------------------------------

    def port(self, number: Any, path: str) -> None:
        self.need(isinstance(number, int) and 1 <= number <= 65535, path, port_problem(number))

    def duration(self, text: Any, path: str) -> None:
        """A duration of at least 1 ms and no fraction of one."""
        try:
            value = Duration.parse(text)
        except (ValueError, TypeError, AttributeError) as problem:
            self.error(path, str(problem))
            return
        millis = float(value) * 1000
        if millis < 1 - 1e-9:
            self.error(path, "must be at least 1ms")
        elif abs(millis - round(millis)) > 1e-7:
            self.error(path, "must be whole milliseconds")

    def durations(self, fields: Fields, path: str, *names: str) -> None:
        for name in names:
            if name in fields:
                self.duration(fields[name], f"{path}.{name}")

    def percent(self, value: Any, path: str) -> None:
        self.need(0 <= value <= 100, path, f"{value} is not a percentage from 0 to 100")

    def regex(self, pattern: str, path: str) -> None:
        if (problem := regex_problem(pattern)) is not None:
            self.error(path, problem)

    def string_match(self, match: Any, path: str) -> None:
        if isinstance(match, dict) and "regex" in match:
            self.regex(match["regex"], f"{path}.regex")

    def fqdn(self, name: str, path: str) -> None:
        if (problem := fqdn_problem(name)) is not None:
            self.error(path, problem)

    def wildcard_domain(self, name: str, path: str) -> bool:
        if (problem := wildcard_problem(name)) is not None:
            self.error(path, problem)
            return False
        return True

    def subnet(self, text: str, path: str) -> None:
        if (problem := subnet_problem(text)) is not None:
            self.error(path, problem)

    def labels(self, labels: Any, path: str) -> None:
        for key, value in (labels or {}).items():
            if (problem := label_problem(key, value)) is not None:
                self.error(f"{path}.{key}", problem)

    def export_to(self, path: str = "spec.exportTo", **kinds: bool) -> None:
        names = self.spec.get("exportTo", ())
        for problem in export_problems(self.resource.namespace, names, **kinds):
            self.error(path, problem)

    # --- shared pieces -----------------------------------------------------------------------

    def selector(self, selector: Any, path: str, field: str = "matchLabels") -> None:
        """A workload selector: no wildcard, no empty key; without labels it selects everything."""
        if selector is None:
            return
        labels = selector.get(field) or {}
        if not labels:
            self.warn(path, f"selects every workload of the namespace: it has no {field}")
        for key, value in labels.items():
            place = f"{path}.{field}"
            self.need(key, place, "a label's name must not be empty")
            wild = "*" in key or "*" in value
            self.need(not wild, f"{place}.{key}", "a wildcard selects nothing: write it out")

    def target_refs(self, path: str = "spec") -> None:
        """`targetRef`, `targetRefs` and `selector`: at most one kind; each names a known target."""
        spec = self.spec
        refs = [(f"{path}.targetRef", spec["targetRef"])] if "targetRef" in spec else []
        refs += each(spec.get("targetRefs"), f"{path}.targetRefs")
        given = [name for name in ("selector", "targetRef", "targetRefs") if name in spec]
        self.need(len(given) < 2, path, f"only one of {', '.join(given)} may be set")
        for place, ref in refs:
            self.need(ref.get("name"), f"{place}.name", "is required")
            target = (ref.get("group", ""), ref.get("kind", ""))
            self.need(not ref.get("namespace"), f"{place}.namespace", "must not be set")
            if target not in TARGETS:
                choices = ", ".join(f"{group or 'core'} {kind}" for group, kind in TARGETS)
                self.error(f"{place}.kind", f"{' '.join(target)} is none of {choices}")


TARGETS = (
    ("gateway.networking.k8s.io", "Gateway"),
    ("gateway.networking.k8s.io", "GatewayClass"),
    ("", "Service"),
    ("core", "Service"),
    ("networking.istio.io", "ServiceEntry"),
)


def each(items: Any, path: str) -> Iterator[tuple[str, Any]]:
    """The members of a list with their paths."""
    for index, item in enumerate(items or ()):
        yield f"{path}[{index}]", item


# --- predicates: None, or what is wrong ---------------------------------------------------------


def port_problem(number: Any) -> str:
    return f"{number} is not a port: 1 to 65535"


def is_label(text: str) -> bool:
    """Whether it is a DNS label (RFC 1123), in any case."""
    return len(text) <= 63 and _LABEL.fullmatch(text) is not None


def fqdn_problem(name: str) -> str | None:
    """Istio ValidateFQDN; a final dot is allowed."""
    return _length_problem(name) or _labels_problem(name)


def wildcard_problem(name: str) -> str | None:
    """Istio ValidateWildcardDomain: a DNS name whose first label may be or begin with `*`."""
    if (problem := _length_problem(name)) is not None:
        return problem
    first, dot, rest = name.partition(".")
    if len(first) > 63 or _WILDCARD_LABEL.fullmatch(first) is None:
        return f"{name!r} is not a host name ({first!r} is wrong)"
    return _labels_problem(rest) if dot else None


def sni_problem(name: str, *, sni: bool) -> str | None:
    """Istio ValidateWildcardDomainForVirtualServiceBoundToGateway.

    Hosts that Istio generates for SNI look like `outbound_.80_.subset_.host`.
    """
    if (problem := _length_problem(name)) is not None:
        return problem
    if sni and name.startswith("outbound_"):
        parts = name.split("_.", 3)
        if len(parts) < 4 or not parts[1].removeprefix(".").isdigit():
            return f"{name!r} is not outbound_.<port>_.<subset>_.<host>"
        return fqdn_problem(parts[3])
    return wildcard_problem(name)


def _length_problem(name: str) -> str | None:
    if not name:
        return "a host name must not be empty"
    return "a host name has at most 255 characters" if len(name) > 255 else None


def _labels_problem(name: str) -> str | None:
    parts = name.split(".")
    if parts[-1].lstrip("+-").isdigit():
        return f"{name!r}: the last label of a host name cannot be a number"
    if len(parts) > 1 and parts[-1] == "":
        parts.pop()
    for part in parts:
        if not is_label(part):
            return f"{name!r} is not a host name ({part!r} is wrong)"
    return None


def subnet_problem(text: str) -> str | None:
    """An address, or a CIDR."""
    try:
        if "/" in text:
            ipaddress.ip_network(text, strict=False)
        else:
            ipaddress.ip_address(text)
    except ValueError:
        return f"{text!r} is neither an IP address nor a subnet such as 10.0.0.0/8"
    return None


def regex_problem(pattern: str) -> str | None:
    """RE2 is what Envoy matches with; it takes no empty pattern."""
    if not pattern:
        return "is empty; Envoy needs a pattern: .* matches everything"
    try:
        re2.compile(pattern, _RE2_OPTIONS)
    except re2.error as problem:
        text = problem.args[0] if problem.args else ""
        shown = text.decode() if isinstance(text, bytes) else str(text)
        return f"{pattern!r} is not an RE2 pattern: {shown}"
    return None


_RE2_OPTIONS = re2.Options()
_RE2_OPTIONS.log_errors = False


def label_problem(key: str, value: str) -> str | None:
    prefix, slash, name = key.rpartition("/")
    if slash and any(not is_label(part) for part in prefix.split(".")):
        return f"{key!r} is not a label's name"
    if len(name) > 63 or _TAG_NAME.fullmatch(name) is None:
        return f"{key!r} is not a label's name"
    if len(value) > 63 or (value and _TAG_NAME.fullmatch(value) is None):
        return f"{value!r} is not a label's value"
    return None


def header_name_problem(name: str, *, matched: bool = False) -> str | None:
    """A header to expose or change, or (`matched`) to match: pseudo headers too."""
    if not name:
        return "a header's name must not be empty"
    pattern = _MATCHED_HEADER if matched else _HEADER
    return None if pattern.fullmatch(name) else f"{name!r} is not a header's name"


def header_operation_problem(name: str, *, allowed: Iterable[str] = ()) -> str | None:
    """A header to set, add or remove; pseudo headers and Host only where allowed."""
    if not name:
        return "a header's name must not be empty"
    if name.lower() in allowed:
        return None
    if name.lower() == "host" or name.startswith(":"):
        return f"{name!r} cannot be changed here: use rewrite.authority"
    return header_name_problem(name)


def header_value_problem(value: str) -> str | None:
    """Envoy reads `%…%` as a variable; what is in its parentheses is its own affair."""
    if _PARAMETERS.sub("", value).count("%") % 2:
        return "a single % must be doubled (%%), or enclose the name of an Envoy variable"
    return None


def export_problems(
    namespace: str,
    names: Iterable[str],
    *,
    service_entry: bool = False,
    with_selector: bool = False,
) -> Iterator[str]:
    """H7. Source: Istio validateExportTo."""
    listed = list(names)
    seen: set[str] = set()
    for name in listed:
        key = namespace if name == "." else name
        if key in seen:
            yield f"{name!r} is there twice (`.` is {namespace!r})"
        seen.add(key)
        if key not in ("*", "~") and not is_label(key):
            yield f"{name!r} is not a namespace, `.` or `*`"
    if with_selector and seen - {namespace}:
        yield "a rule with workloadSelector speaks to its own namespace only: leave exportTo out"
    if "*" in seen and len(listed) > 1:
        yield "`*` is everybody: it must stand alone"
    if "~" in seen and not service_entry:
        yield "`~` (nobody) is for ServiceEntries only"
    elif "~" in seen and len(listed) > 1:
        yield "`~` is nobody: it must stand alone"


def host_or_ip_problem(name: str) -> str | None:
    return None if is_address(name) else fqdn_problem(name)
