"""How a cluster spreads its calls: what CDS says of load balancing, as frozen values.

Names and defaults are Envoy's; for the typed policies and for the enum `lb_policy` alike.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from meshsdk.model.actions import HashPolicy

DEFAULT_TABLE_SIZE: Final = 65537
MAX_RING_SIZE: Final = 8 * 1024 * 1024


class Balancing(enum.Enum):
    """Which load balancer."""

    ROUND_ROBIN = "ROUND_ROBIN"
    RANDOM = "RANDOM"
    LEAST_REQUEST = "LEAST_REQUEST"
    RING_HASH = "RING_HASH"
    MAGLEV = "MAGLEV"
    CLIENT_SIDE_WEIGHTED_ROUND_ROBIN = "CLIENT_SIDE_WEIGHTED_ROUND_ROBIN"
    PICK_FIRST = "PICK_FIRST"
    CLUSTER_PROVIDED = "CLUSTER_PROVIDED"

    @property
    def hashes(self) -> bool:
        """Whether the key of a call decides where it goes."""
        return self in (Balancing.RING_HASH, Balancing.MAGLEV)


class HashFunction(enum.Enum):
    XX_HASH = "XX_HASH"
    MURMUR_HASH_2 = "MURMUR_HASH_2"


@dataclass(frozen=True, slots=True)
class SlowStart:
    """An endpoint that is new gets less, growing over `window`.

    Attributes:
        window: seconds.
        aggression: 1 grows linearly, more grows faster at the beginning.
        min_weight_percent: of its weight, what it has at least.
    """

    window: float
    aggression: float = 1.0
    min_weight_percent: float = 10.0


@dataclass(frozen=True, slots=True)
class ZoneAware:
    """Prefer the endpoints of the caller's own locality.

    Attributes:
        routing_enabled: percent of the calls that it is done for.
        min_cluster_size: it is not done for less healthy endpoints.
        fail_traffic_on_panic: answer 503 where panic would send to unhealthy endpoints.
        force_local_zone: stay local, whatever the balance of callers and endpoints, where at least
            so many local endpoints are healthy; None balances always.
        by_weight: measure localities by the weights of their endpoints, not by their number.
    """

    routing_enabled: int = 100
    min_cluster_size: int = 6
    fail_traffic_on_panic: bool = False
    force_local_zone: int | None = None
    by_weight: bool = False


@dataclass(frozen=True, slots=True)
class LoadReports:
    """How CLIENT_SIDE_WEIGHTED_ROUND_ROBIN makes weights of ORCA load reports (gRFC A58).

    Attributes:
        blackout_period: seconds from the first report during which an endpoint has no weight.
        weight_expiration_period: seconds after which a weight without a new report is void.
        weight_update_period: seconds between two recalculations.
        error_utilization_penalty: what the share of errors adds to the utilization.
        metric_names: the metrics that tell the utilization (`named_metrics.x`); the highest counts.
    """

    blackout_period: float = 10.0
    weight_expiration_period: float = 180.0
    weight_update_period: float = 1.0
    error_utilization_penalty: float = 1.0
    metric_names: tuple[str, ...] = ()


class SubsetFallback(enum.Enum):
    """What becomes of a call whose metadata match no subset."""

    NO_FALLBACK = "NO_FALLBACK"
    ANY_ENDPOINT = "ANY_ENDPOINT"
    DEFAULT_SUBSET = "DEFAULT_SUBSET"
    KEYS_SUBSET = "KEYS_SUBSET"
    """Try again with fewer keys; of a selector only."""


@dataclass(frozen=True, slots=True)
class SubsetSelector:
    """Endpoints that agree in these keys of their `envoy.lb` metadata form a subset.

    Attributes:
        fallback: instead of the cluster's; None leaves it to the cluster.
        single_host: the subset is its first endpoint.
    """

    keys: frozenset[str]
    fallback: SubsetFallback | None = None
    fallback_keys: frozenset[str] = frozenset()
    single_host: bool = False


@dataclass(frozen=True, slots=True)
class Subsets:
    """`Cluster.lb_subset_config`: endpoints chosen by metadata.

    Attributes:
        locality_weight_aware: localities keep their weights in a subset;
            `scale_locality_weight` in proportion to the endpoints left in them.
        panic_mode_any: a default subset that has nothing to offer makes way for any endpoint.
        list_as_any: a list in the metadata of an endpoint stands for each of its elements.
        fallback_list: the key `fallback_list` of a match lists what to try one after another.
        allow_redundant_keys: a match may have more keys than the selector.
    """

    fallback: SubsetFallback = SubsetFallback.NO_FALLBACK
    selectors: tuple[SubsetSelector, ...] = ()
    default_subset: Mapping[str, Any] = field(default_factory=dict, hash=False)
    locality_weight_aware: bool = False
    scale_locality_weight: bool = False
    panic_mode_any: bool = False
    list_as_any: bool = False
    fallback_list: bool = False
    allow_redundant_keys: bool = False


@dataclass(frozen=True, slots=True)
class LbConfig:
    """The settings of a load balancer; each policy looks at its own.

    Attributes:
        choice_count, active_request_bias, full_scan: of LEAST_REQUEST.
        slow_start: of ROUND_ROBIN and LEAST_REQUEST.
        minimum_ring_size, maximum_ring_size, hash_function: of RING_HASH.
        table_size: of MAGLEV, a prime number.
        use_hostname_for_hashing, hash_balance_factor: of both; the factor is in percent of the
            mean of active calls, 0 is without bound.
        hash_policy: what the key of a call is made of, instead of that of the route.
        load_reports: of CLIENT_SIDE_WEIGHTED_ROUND_ROBIN.
        shuffle_address_list: of PICK_FIRST.
        subset_size: use so many endpoints only, others in each process (gRFC A68); 0 is all.
        locality_weighted: share calls among localities by their weights.
        panic_threshold: percent of healthy endpoints below which all are used; 0 is never.
    """

    choice_count: int = 2
    active_request_bias: float = 1.0
    full_scan: bool = False
    slow_start: SlowStart | None = None
    minimum_ring_size: int = 1024
    maximum_ring_size: int = MAX_RING_SIZE
    hash_function: HashFunction = HashFunction.XX_HASH
    table_size: int = DEFAULT_TABLE_SIZE
    use_hostname_for_hashing: bool = False
    hash_balance_factor: int = 0
    hash_policy: tuple[HashPolicy, ...] = ()
    load_reports: LoadReports = LoadReports()
    shuffle_address_list: bool = False
    subset_size: int = 0
    locality_weighted: bool = False
    zone_aware: ZoneAware | None = None
    panic_threshold: int = 50
    subsets: Subsets | None = None
