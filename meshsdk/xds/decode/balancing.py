"""What a Cluster says of load balancing → `model.Balancing` and `model.LbConfig`.

The policy is the first known one of `load_balancing_policy`, else the enum `lb_policy` with the
field that belongs to it. A `TypedStruct` holds a policy as JSON: of Envoy's type, or of a policy
of gRPC by its name (`ring_hash_experimental`). A policy that is not known is passed over, and a
list without a known one rejects the cluster.

Sources: Envoy `config/cluster/v3/cluster.proto`, `extensions/load_balancing_policies`; gRFC A24,
A42, A48, A52, A58, A62, A68, A76. What is refused is what Envoy 1.40 refuses, and a `choice_count`
below 2.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

from envoy.extensions.load_balancing_policies.client_side_weighted_round_robin.v3 import (
    client_side_weighted_round_robin_pb2 as wrr_pb2,
)
from envoy.extensions.load_balancing_policies.cluster_provided.v3 import cluster_provided_pb2
from envoy.extensions.load_balancing_policies.least_request.v3 import least_request_pb2
from envoy.extensions.load_balancing_policies.maglev.v3 import maglev_pb2
from envoy.extensions.load_balancing_policies.override_host.v3 import override_host_pb2
from envoy.extensions.load_balancing_policies.pick_first.v3 import pick_first_pb2
from envoy.extensions.load_balancing_policies.random.v3 import random_pb2
from envoy.extensions.load_balancing_policies.ring_hash.v3 import ring_hash_pb2
from envoy.extensions.load_balancing_policies.round_robin.v3 import round_robin_pb2
from envoy.extensions.load_balancing_policies.subset.v3 import subset_pb2
from envoy.extensions.load_balancing_policies.wrr_locality.v3 import wrr_locality_pb2
from google.protobuf import json_format
from udpa.type.v1 import typed_struct_pb2 as udpa_struct_pb2
from xds.type.v3 import typed_struct_pb2

from meshsdk.model import (
    Balancing,
    HashFunction,
    HashKind,
    HashPolicy,
    LbConfig,
    LoadReports,
    SlowStart,
    SubsetFallback,
    Subsets,
    SubsetSelector,
    ZoneAware,
)
from meshsdk.model.balancing import DEFAULT_TABLE_SIZE, MAX_RING_SIZE
from meshsdk.xds.decode.common import Bad, Notes, each, seconds, struct, sub, type_name, unpack
from meshsdk.xds.decode.policies import hash_policy

Policy = tuple[Balancing, dict[str, Any]]
"""The policy, and what it sets of `LbConfig`."""

_MAX_DEPTH: Final = 16
_MAX_TABLE_SIZE: Final = 5_000_011
_DEFAULT_PANIC: Final = 50


def load_balancing(message: Any, notes: Notes) -> tuple[Balancing, LbConfig]:
    """The load balancer of an `envoy.config.cluster.v3.Cluster`."""
    typed = message.HasField("load_balancing_policy")
    common = message.common_lb_config
    if typed:
        _check_alone(message)
        policy = message.load_balancing_policy
        balancing, fields = sub("load_balancing_policy", _first_known, policy, notes)
    else:
        _check_names(message)
        balancing, fields = _by_enum(message, notes)
        fields.update(sub("common_lb_config", _locality, common, notes))
        if message.HasField("lb_subset_config"):
            if balancing is Balancing.CLUSTER_PROVIDED:
                raise Bad("lb_subset_config", "does not go with lb_policy CLUSTER_PROVIDED")
            config = message.lb_subset_config
            fields["subsets"] = sub("lb_subset_config", _subsets, config, notes)
    panic = "common_lb_config.healthy_panic_threshold"
    threshold = _percent(panic, common, "healthy_panic_threshold", _DEFAULT_PANIC)
    return balancing, LbConfig(**fields, panic_threshold=_rounded(threshold))


def _check_alone(message: Any) -> None:
    if message.HasField("lb_subset_config"):
        raise Bad("lb_subset_config", "does not go with load_balancing_policy: use the Subset type")
    for name in ("zone_aware_lb_config", "locality_weighted_lb_config"):
        if message.common_lb_config.HasField(name):
            problem = "does not go with load_balancing_policy: set it in the policy"
            raise Bad(f"common_lb_config.{name}", problem)
    if message.common_lb_config.HasField("consistent_hashing_lb_config"):
        problem = "does not go with load_balancing_policy: set it in the policy"
        raise Bad("common_lb_config.consistent_hashing_lb_config", problem)


_STRICT_DNS: Final = 1


def _check_names(message: Any) -> None:
    """Only endpoints that were looked up have names that tell them apart, as Envoy sees it."""
    hashing = message.common_lb_config.consistent_hashing_lb_config
    if hashing.use_hostname_for_hashing and message.type != _STRICT_DNS:
        raise Bad(
            "common_lb_config.consistent_hashing_lb_config.use_hostname_for_hashing",
            "goes with a cluster of type STRICT_DNS only",
        )


# --- by the enum -----------------------------------------------------------------------------


def _by_enum(message: Any, notes: Notes) -> Policy:
    """`lb_policy`; a configuration that belongs to another policy is not looked at, as in Envoy."""
    number = message.lb_policy
    if number == 0:
        return sub("round_robin_lb_config", _round_robin, message.round_robin_lb_config, notes)
    if number == 1:
        config = message.least_request_lb_config
        return sub("least_request_lb_config", _least_request, config, notes)
    if number == 3:
        return Balancing.RANDOM, {}
    if number == 6:
        return Balancing.CLUSTER_PROVIDED, {}
    if number == 7:
        raise Bad("load_balancing_policy", "is needed by LOAD_BALANCING_POLICY_CONFIG")
    if number not in (2, 5):
        raise Bad("lb_policy", f"{number} is not known")
    field, decode = (
        ("ring_hash_lb_config", _enum_ring_hash)
        if number == 2
        else ("maglev_lb_config", _maglev_table)
    )
    balancing, fields = sub(field, decode, getattr(message, field), notes)
    hashing = message.common_lb_config.consistent_hashing_lb_config
    fields.update(sub("common_lb_config.consistent_hashing_lb_config", _hashing, hashing, notes))
    return balancing, fields


def _enum_ring_hash(message: Any, notes: Notes) -> Policy:
    # XX_HASH is 0 in the enum, 1 in the typed policy.
    return Balancing.RING_HASH, _ring(message, (0,), 1)


# --- policies --------------------------------------------------------------------------------


def _round_robin(message: Any, notes: Notes) -> Policy:
    return Balancing.ROUND_ROBIN, _slow_start(message, notes)


def _least_request(message: Any, notes: Notes) -> Policy:
    fields = _slow_start(message, notes)
    if message.HasField("choice_count"):
        count = message.choice_count.value
        if count < 2:
            raise Bad("choice_count", f"is {count}, must be at least 2")
        fields["choice_count"] = count
    if message.HasField("active_request_bias"):
        bias = message.active_request_bias.default_value
        if bias < 0 or math.isnan(bias):
            notes.append(f"active_request_bias: is {bias}, 1 is used, as by Envoy")
            bias = 1.0
        fields["active_request_bias"] = bias
    return Balancing.LEAST_REQUEST, fields


def _typed_least_request(message: Any, notes: Notes) -> Policy:
    balancing, fields = _least_request(message, notes)
    fields["full_scan"] = message.selection_method == 1 or message.enable_full_scan.value
    return balancing, fields


def _typed_ring_hash(message: Any, notes: Notes) -> Policy:
    if message.HasField("consistent_hashing_lb_config"):
        config = message.consistent_hashing_lb_config
        hashing = sub("consistent_hashing_lb_config", _hashing, config, notes)
    else:
        hashing = _hashing(message, notes)
    return Balancing.RING_HASH, _ring(message, (0, 1), 2) | hashing


def _ring(message: Any, xx_hash: tuple[int, ...], murmur: int) -> dict[str, Any]:
    smallest = _wrapped(message, "minimum_ring_size", 1024, MAX_RING_SIZE)
    largest = _wrapped(message, "maximum_ring_size", MAX_RING_SIZE, MAX_RING_SIZE)
    if smallest > largest:
        raise Bad("minimum_ring_size", f"is {smallest}, more than maximum_ring_size {largest}")
    number = message.hash_function
    if number not in (*xx_hash, murmur):
        raise Bad("hash_function", f"{number} is not known; use XX_HASH or MURMUR_HASH_2")
    function = HashFunction.MURMUR_HASH_2 if number == murmur else HashFunction.XX_HASH
    return {
        "minimum_ring_size": smallest,
        "maximum_ring_size": largest,
        "hash_function": function,
    }


def _typed_maglev(message: Any, notes: Notes) -> Policy:
    config = message.consistent_hashing_lb_config
    hashing = sub("consistent_hashing_lb_config", _hashing, config, notes)
    balancing, fields = _maglev_table(message, notes)
    return balancing, fields | hashing


def _maglev_table(message: Any, notes: Notes) -> Policy:
    size = _wrapped(message, "table_size", DEFAULT_TABLE_SIZE, _MAX_TABLE_SIZE)
    if not _is_prime(size):
        raise Bad("table_size", f"is {size}, must be a prime number")
    return Balancing.MAGLEV, {"table_size": size}


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % i for i in range(2, math.isqrt(number) + 1))


def _hashing(message: Any, notes: Notes) -> dict[str, Any]:
    """`ConsistentHashingLbConfig`, or the fields of that name in a typed RingHash."""
    own: tuple[HashPolicy, ...] = ()
    if "hash_policy" in message.DESCRIPTOR.fields_by_name:
        found = each("hash_policy", message.hash_policy, hash_policy, notes)
        own = tuple(policy for policy in found if policy is not None)
    factor = message.hash_balance_factor.value
    if message.HasField("hash_balance_factor") and factor < 100:
        raise Bad("hash_balance_factor", f"is {factor}, must be at least 100")
    return {
        "use_hostname_for_hashing": message.use_hostname_for_hashing,
        "hash_balance_factor": factor,
        "hash_policy": own,
    }


def _random(message: Any, notes: Notes) -> Policy:
    return Balancing.RANDOM, {}


def _cluster_provided(message: Any, notes: Notes) -> Policy:
    return Balancing.CLUSTER_PROVIDED, {}


def _pick_first(message: Any, notes: Notes) -> Policy:
    return Balancing.PICK_FIRST, {"shuffle_address_list": message.shuffle_address_list}


def _weighted_round_robin(message: Any, notes: Notes) -> Policy:
    if message.enable_oob_load_report.value:
        notes.append("enable_oob_load_report: is not supported, the reports in responses are used")
    if message.HasField("slow_start_config"):
        notes.append("slow_start_config: is not supported with weights of load reports")
    given: dict[str, Any] = {
        name: seconds(name, getattr(message, name))
        for name in ("blackout_period", "weight_expiration_period", "weight_update_period")
        if message.HasField(name)
    }
    if "weight_update_period" in given:
        given["weight_update_period"] = max(0.1, given["weight_update_period"])
    if message.HasField("error_utilization_penalty"):
        penalty = message.error_utilization_penalty.value
        if not penalty >= 0:
            raise Bad("error_utilization_penalty", f"is {penalty}, must not be negative")
        given["error_utilization_penalty"] = penalty
    reports = LoadReports(
        metric_names=tuple(message.metric_names_for_computing_utilization), **given
    )
    return Balancing.CLIENT_SIDE_WEIGHTED_ROUND_ROBIN, {"load_reports": reports}


# --- the list of typed policies --------------------------------------------------------------

_PREFIX: Final = "envoy.extensions.load_balancing_policies."
_TYPED: Final[dict[str, tuple[Any, Callable[[Any, Notes], Policy]]]] = {
    message.DESCRIPTOR.full_name: (message, decode)
    for message, decode in (
        (round_robin_pb2.RoundRobin, _round_robin),
        (least_request_pb2.LeastRequest, _typed_least_request),
        (random_pb2.Random, _random),
        (ring_hash_pb2.RingHash, _typed_ring_hash),
        (maglev_pb2.Maglev, _typed_maglev),
        (wrr_pb2.ClientSideWeightedRoundRobin, _weighted_round_robin),
        (pick_first_pb2.PickFirst, _pick_first),
        (cluster_provided_pb2.ClusterProvided, _cluster_provided),
    )
}
_WRR_LOCALITY: Final = wrr_locality_pb2.WrrLocality.DESCRIPTOR.full_name
_SUBSET: Final = subset_pb2.Subset.DESCRIPTOR.full_name
_OVERRIDE_HOST: Final = override_host_pb2.OverrideHost.DESCRIPTOR.full_name
_PARENTS: Final[dict[str, Any]] = {
    _WRR_LOCALITY: wrr_locality_pb2.WrrLocality,
    _SUBSET: subset_pb2.Subset,
    _OVERRIDE_HOST: override_host_pb2.OverrideHost,
}
_STRUCTS: Final[dict[str, Any]] = {
    message.DESCRIPTOR.full_name: message
    for message in (typed_struct_pb2.TypedStruct, udpa_struct_pb2.TypedStruct)
}


def _first_known(message: Any, notes: Notes, depth: int = 1) -> Policy:
    """The first policy of a `LoadBalancingPolicy` that is known, by type."""
    if depth > _MAX_DEPTH:
        raise Bad("policies", f"are nested deeper than {_MAX_DEPTH}")

    def decode(item: Any, notes: Notes) -> Policy | str:
        typed = item.typed_extension_config.typed_config
        return sub(
            "typed_extension_config.typed_config", lambda m, n: _typed(m, n, depth), typed, notes
        )

    names: list[str] = []
    for index, item in enumerate(message.policies):
        found = sub(f"policies[{index}]", decode, item, notes)
        if not isinstance(found, str):
            return found
        names.append(found)
    raise Bad("policies", f"none is supported: {', '.join(names) or 'the list is empty'}")


def _typed(container: Any, notes: Notes, depth: int) -> Policy | str:
    """One policy of the list, or the name of a type that is not known."""
    kind = type_name(container)
    if kind in _STRUCTS:
        held = unpack(container, _STRUCTS[kind])
        return _of_struct(held.type_url.rpartition("/")[2], held.value, notes, depth)
    if kind in _PARENTS:
        return _parent(unpack(container, _PARENTS[kind]), notes, depth)
    if kind not in _TYPED:
        return kind
    return _known(unpack(container, _TYPED[kind][0]), notes)


def _known(message: Any, notes: Notes) -> Policy:
    balancing, fields = _TYPED[message.DESCRIPTOR.full_name][1](message, notes)
    names = message.DESCRIPTOR.fields_by_name
    if "locality_lb_config" in names:
        config = message.locality_lb_config
        fields.update(sub("locality_lb_config", _locality, config, notes))
    elif "locality_weighted_lb_config" in names:
        fields["locality_weighted"] = message.HasField("locality_weighted_lb_config")
    return balancing, fields


def _parent(message: Any, notes: Notes, depth: int) -> Policy:
    """A policy that chooses among endpoints by another one."""

    def child(inner: Any, notes: Notes) -> Policy:
        return _first_known(inner, notes, depth + 1)

    kind = message.DESCRIPTOR.full_name
    if kind == _WRR_LOCALITY:
        inner = message.endpoint_picking_policy
        balancing, fields = sub("endpoint_picking_policy", child, inner, notes)
        return balancing, fields | {"locality_weighted": True}
    if kind == _SUBSET:
        balancing, fields = sub("subset_lb_policy", child, message.subset_lb_policy, notes)
        return balancing, fields | {"subsets": _subsets(message, notes)}
    notes.append("override_host_sources: are not supported, the fallback_policy is used")
    return sub("fallback_policy", child, message.fallback_policy, notes)


# --- policies as JSON ------------------------------------------------------------------------

_OF_GRPC: Final[dict[str, tuple[Any, dict[str, str]]]] = {
    "round_robin": (round_robin_pb2.RoundRobin, {}),
    "pick_first": (pick_first_pb2.PickFirst, {}),
    "least_request_experimental": (least_request_pb2.LeastRequest, {}),
    "ring_hash_experimental": (
        ring_hash_pb2.RingHash,
        {"minRingSize": "minimumRingSize", "maxRingSize": "maximumRingSize"},
    ),
    "weighted_round_robin": (wrr_pb2.ClientSideWeightedRoundRobin, {}),
}
"""Policies of gRPC's service config by name, and how Envoy calls their fields."""


def _of_struct(name: str, value: Any, notes: Notes, depth: int) -> Policy | str:
    message: Any
    renamed: dict[str, str] = {}
    if name == "xds_wrr_locality_experimental":
        balancing, fields = _child_of_grpc(value, notes, depth)
        return balancing, fields | {"locality_weighted": True}
    if name == "random_subsetting_experimental":
        size = value.fields["subsetSize"].number_value
        if size < 1:
            raise Bad("value.subsetSize", f"is {size:g}, must be at least 1")
        balancing, fields = _child_of_grpc(value, notes, depth)
        return balancing, fields | {"subset_size": int(size)}
    if name in _OF_GRPC:
        message, renamed = _OF_GRPC[name]
    elif name in _TYPED:
        message = _TYPED[name][0]
    elif name in _PARENTS:
        message = _PARENTS[name]
    else:
        return name
    extra = _grpc_extra(name, value, notes)
    content = {renamed.get(key, key): item for key, item in struct(value).items()}
    try:
        # gRPC looks over fields that it does not know; a newer Envoy may have more.
        parsed = json_format.ParseDict(content, message(), ignore_unknown_fields=True)
    except json_format.ParseError as error:
        raise Bad("value", str(error)) from None

    def decode(message: Any, notes: Notes) -> Policy:
        if name in _PARENTS:
            return _parent(message, notes, depth)
        balancing, fields = _known(message, notes)
        return balancing, fields | extra

    return sub("value", decode, parsed, notes)


def _grpc_extra(name: str, value: Any, notes: Notes) -> dict[str, Any]:
    """What gRPC's policy of that name has and Envoy's has not."""
    header = value.fields["requestHashHeader"].string_value.lower()
    if name != "ring_hash_experimental" or not header:
        return {}
    if header.endswith("-bin"):
        raise Bad("value.requestHashHeader", f"is {header}, binary metadata is not hashed")
    return {"hash_policy": (HashPolicy(HashKind.HEADER, header),)}


def _child_of_grpc(value: Any, notes: Notes, depth: int) -> Policy:
    """The first known policy of a `childPolicy`: a list of objects of one key each."""
    if "childPolicy" not in value.fields:
        raise Bad("value.childPolicy", "is needed")
    if depth >= _MAX_DEPTH:
        raise Bad("value.childPolicy", f"is nested deeper than {_MAX_DEPTH}")
    names: list[str] = []
    for item in value.fields["childPolicy"].list_value.values:
        for name, config in item.struct_value.fields.items():
            found = _of_struct(name, config.struct_value, notes, depth + 1)
            if not isinstance(found, str):
                return found
            names.append(found)
    raise Bad("value.childPolicy", f"none is supported: {', '.join(names) or 'the list is empty'}")


# --- parts -----------------------------------------------------------------------------------


def _slow_start(message: Any, notes: Notes) -> dict[str, Any]:
    config = message.slow_start_config
    window = seconds("slow_start_config.slow_start_window", config.slow_start_window)
    least = _percent("slow_start_config.min_weight_percent", config, "min_weight_percent", 10.0)
    if not window:
        return {}
    aggression = config.aggression.default_value if config.HasField("aggression") else 1.0
    if not aggression > 0:
        notes.append(f"slow_start_config.aggression: is {aggression}, 1 is used, as by Envoy")
        aggression = 1.0
    return {"slow_start": SlowStart(window, aggression, least)}


def _locality(message: Any, notes: Notes) -> dict[str, Any]:
    """`LocalityLbConfig`, or the fields of that name in `CommonLbConfig`."""
    fields: dict[str, Any] = {}
    if message.HasField("locality_weighted_lb_config"):
        fields["locality_weighted"] = True
    if message.HasField("zone_aware_lb_config"):
        config = message.zone_aware_lb_config
        fields["zone_aware"] = sub("zone_aware_lb_config", _zone_aware, config, notes)
    return fields


def _zone_aware(message: Any, notes: Notes) -> ZoneAware:
    smallest = message.min_cluster_size.value if message.HasField("min_cluster_size") else 6
    local: int | None = None
    by_weight = False
    if "force_local_zone" in message.DESCRIPTOR.fields_by_name:
        by_weight = message.locality_basis == 1
        if message.HasField("force_local_zone"):
            zone = message.force_local_zone
            local = zone.min_size.value if zone.HasField("min_size") else 1
        elif message.force_locality_direct_routing:
            local = 1
    enabled = _rounded(_percent("routing_enabled", message, "routing_enabled", 100))
    return ZoneAware(enabled, smallest, message.fail_traffic_on_panic, local, by_weight)


_FALLBACKS: Final = (
    SubsetFallback.NO_FALLBACK,
    SubsetFallback.ANY_ENDPOINT,
    SubsetFallback.DEFAULT_SUBSET,
)


def _subsets(message: Any, notes: Notes) -> Subsets:
    """`LbSubsetConfig`, or the typed policy Subset, which has the same fields and one more."""
    if not 0 <= message.fallback_policy < len(_FALLBACKS):
        raise Bad("fallback_policy", f"{message.fallback_policy} is not known")
    redundant = "allow_redundant_keys" in message.DESCRIPTOR.fields_by_name
    return Subsets(
        _FALLBACKS[message.fallback_policy],
        tuple(each("subset_selectors", message.subset_selectors, _selector, notes)),
        struct(message.default_subset),
        message.locality_weight_aware,
        message.scale_locality_weight,
        message.panic_mode_any,
        message.list_as_any,
        message.metadata_fallback_policy == 1,
        redundant and message.allow_redundant_keys,
    )


def _selector(message: Any, notes: Notes) -> SubsetSelector:
    choices = (None, *_FALLBACKS, SubsetFallback.KEYS_SUBSET)
    if not 0 <= message.fallback_policy < len(choices):
        raise Bad("fallback_policy", f"{message.fallback_policy} is not known")
    fallback = choices[message.fallback_policy]
    keys, fewer = frozenset(message.keys), frozenset(message.fallback_keys_subset)
    if fallback is not SubsetFallback.KEYS_SUBSET:
        if fewer:
            raise Bad("fallback_keys_subset", "goes with fallback_policy KEYS_SUBSET only")
    elif not fewer or not fewer < keys:
        problem = "must be some of the keys, and not all of them" if fewer else "must not be empty"
        raise Bad("fallback_keys_subset", problem)
    return SubsetSelector(keys, fallback, fewer, message.single_host_per_subset)


def _percent(path: str, message: Any, field: str, default: float) -> float:
    if not message.HasField(field):
        return default
    value: float = getattr(message, field).value
    if not 0 <= value <= 100:
        raise Bad(path, f"is {value}, must be from 0 to 100")
    return value


def _rounded(percent: float) -> int:
    return math.floor(percent + 0.5)


def _wrapped(message: Any, field: str, default: int, most: int) -> int:
    if not message.HasField(field):
        return default
    value: int = getattr(message, field).value
    if value > most:
        raise Bad(field, f"is {value}, must be at most {most}")
    return value
