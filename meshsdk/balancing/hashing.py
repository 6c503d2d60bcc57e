"""Who of a list of endpoints takes the calls of a key: ring hash and Maglev, as Envoy builds them.

A table is built of keys and weights alone (`ring_table`, `maglev_table`): it is shared by views
whose endpoints are the same, whatever else changed. Sources: Envoy `ring_hash_lb.cc`,
`maglev_lb.cc`, `thread_aware_lb_impl.cc`; gRFC A42, A76.
"""

from __future__ import annotations

import ipaddress
import math
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from xxhash import xxh64_intdigest

from meshsdk.balancing.endpoint import EndpointState
from meshsdk.balancing.pickers import Picker, Random, States
from meshsdk.model import Balancing, Endpoint, HashFunction, LbConfig

_WORD = 0xFFFFFFFFFFFFFFFF
_SEED = 0xC70F6907
_MULTIPLIER = 0xC6A4A7935BD1E995


def xx_hash(data: bytes, seed: int = 0) -> int:
    """XXH64: what Envoy hashes keys of calls and names of endpoints with."""
    return xxh64_intdigest(data, seed)


def murmur_hash_2(data: bytes, seed: int = _SEED) -> int:
    """MurmurHash64A as libstdc++'s `std::hash` has it (Envoy's MURMUR_HASH_2)."""
    whole = len(data) & ~7
    result = seed ^ (len(data) * _MULTIPLIER & _WORD)
    for start in range(0, whole, 8):
        word = int.from_bytes(data[start : start + 8], "little") * _MULTIPLIER & _WORD
        result = (result ^ (word ^ word >> 47) * _MULTIPLIER & _WORD) * _MULTIPLIER & _WORD
    if whole < len(data):
        result = (result ^ int.from_bytes(data[whole:], "little")) * _MULTIPLIER & _WORD
    result = (result ^ result >> 47) * _MULTIPLIER & _WORD
    return result ^ result >> 47


_FUNCTIONS: dict[HashFunction, Callable[[bytes], int]] = {
    HashFunction.XX_HASH: xx_hash,
    HashFunction.MURMUR_HASH_2: murmur_hash_2,
}


def hash_key(endpoint: Endpoint, use_hostname: bool) -> str:
    """What an endpoint is known by on a ring: `envoy.lb.hash_key`, host name, or address."""
    given = (endpoint.metadata.get("envoy.lb") or {}).get("hash_key")
    if isinstance(given, str) and given:
        return given
    return endpoint.hostname if use_hostname else _address(endpoint)


def _address(endpoint: Endpoint) -> str:
    """The address as Envoy writes it: IPv6 in its short form, the bare path of a socket."""
    if not endpoint.port:
        return endpoint.address
    if ":" not in endpoint.address:
        return endpoint.target
    parsed = ipaddress.IPv6Address(endpoint.address)
    mapped = parsed.ipv4_mapped
    return f"[{f'::ffff:{mapped}' if mapped else parsed.compressed}]:{endpoint.port}"


# --- tables ----------------------------------------------------------------------------------

Weighed = tuple[tuple[str, float], ...]
"""Hash key and weight by endpoint; the weights sum to 1."""


@dataclass(frozen=True, slots=True, eq=False)
class RingTable:
    """Places on a ring in rising order, and the index of the endpoint at each."""

    places: list[int]
    owners: array[int]

    def find(self, key: int, attempt: int = 0) -> int:
        """The owner of the first place at or after the key.

        Args:
            attempt: how many places to go on, for a retry that must not hit the same endpoint.
        """
        owners = self.owners
        return owners[(bisect_left(self.places, key) + attempt) % len(owners)]

    def sequence(self, key: int) -> Iterator[int]:
        """All owners from the key on, each where it first comes."""
        start = bisect_left(self.places, key)
        return iter(dict.fromkeys([*self.owners[start:], *self.owners[:start]]))


def ring_table(weighed: Weighed, config: LbConfig) -> RingTable:
    """As many places for each endpoint as its weight says, on a ring of the configured size."""
    function = _FUNCTIONS[config.hash_function]
    least = min(weight for _, weight in weighed)
    # The lightest endpoint has a whole number of places, unless the ring would grow too large.
    scale = min(
        math.ceil(least * config.minimum_ring_size) / least, float(config.maximum_ring_size)
    )
    entries: list[tuple[int, int]] = []
    target = 0.0
    for index, (name, weight) in enumerate(weighed):
        target += scale * weight
        prefix = name.encode() + b"_"
        number = 0
        while len(entries) < target:
            entries.append((function(prefix + b"%d" % number), index))
            number += 1
    entries.sort()
    return RingTable([place for place, _ in entries], array("I", [index for _, index in entries]))


@dataclass(frozen=True, slots=True, eq=False)
class MaglevTable:
    """The index of the endpoint of each slot."""

    owners: array[int]

    def find(self, key: int, attempt: int = 0) -> int:
        """The owner of the slot of the key; another key is made of it for each retry."""
        if attempt:
            key ^= _WORD - attempt + 1
        return self.owners[key % len(self.owners)]

    def sequence(self, key: int) -> Iterator[int]:
        """All owners from the slot of the key on, each where it first comes."""
        start = key % len(self.owners)
        return iter(dict.fromkeys([*self.owners[start:], *self.owners[:start]]))


def maglev_table(weighed: Weighed, config: LbConfig) -> MaglevTable:
    """Endpoints take turns, as often as their weight says, each at the next free slot of its own
    permutation."""
    size = config.table_size
    most = max(weight for _, weight in weighed)
    # Sorted by name, so that the order in which endpoints are listed changes nothing.
    order = sorted(range(len(weighed)), key=lambda index: weighed[index])
    names = [weighed[index][0].encode() for index in order]
    weights = [weighed[index][1] for index in order]
    slots = [xx_hash(name) % size for name in names]
    skips = [xx_hash(name, 1) % (size - 1) + 1 if size > 1 else 0 for name in names]
    targets = [0.0] * len(order)
    owners = [-1] * size
    left = size
    turn = 0
    while True:
        turn += 1
        for i, index in enumerate(order):
            if turn * weights[i] < targets[i]:
                continue
            targets[i] += most
            slot, skip = slots[i], skips[i]
            while owners[slot] >= 0:
                slot += skip
                if slot >= size:
                    slot -= size
            owners[slot] = index
            slots[i] = (slot + skip) % size
            left -= 1
            if not left:
                return MaglevTable(array("I", owners))


Table = RingTable | MaglevTable
Tables = dict[tuple[object, ...], Table]
"""Tables by all that they are built of."""


def table_of(
    balancing: Balancing, config: LbConfig, weighed: Weighed, known: Tables, used: Tables
) -> Table:
    """The table for these endpoints, one of the known ones if it is the same; put into `used`."""
    build: Callable[[Weighed, LbConfig], Table]
    key: tuple[object, ...]
    if balancing is Balancing.MAGLEV:
        key, build = (config.table_size, weighed), maglev_table
    else:
        sizes = config.minimum_ring_size, config.maximum_ring_size
        key, build = (config.hash_function, *sizes, weighed), ring_table
    table = used[key] = known.get(key) or used.get(key) or build(weighed, config)
    return table


# --- pickers ---------------------------------------------------------------------------------


def any_key(random: Random) -> int:
    """A key for a call that has none."""
    return int(random() * (_WORD + 1))


def by_key(states: States, table: Table) -> Picker:
    find = table.find

    def pick(random: Random, key: int | None = None) -> EndpointState:
        return states[find(any_key(random) if key is None else key)]

    return pick


def by_key_bounded(
    states: States, weights: Sequence[float], table: Table, factor: int, everybody: States
) -> Picker:
    """By key, as long as nobody has more than its share of active attempts.

    Where the endpoint of the key is overloaded, the others are tried in an order that the key
    decides. It looks at all endpoints.

    Args:
        factor: percent of the mean that an endpoint may have.
        everybody: all endpoints of the cluster, whose attempts make the mean.
    """

    def overload(index: int, active: int) -> float:
        slots = max(1, math.ceil(((active + 1) * factor + 99) // 100 * weights[index]))
        return len(states[index]._marks) / slots

    def pick(random: Random, key: int | None = None) -> EndpointState:
        if key is None:
            key = any_key(random)
        first = best = table.find(key)
        active = sum([len(state._marks) for state in everybody])
        least = overload(first, active)
        if least <= 1:
            return states[first]
        for index in _shuffled(len(states), key):
            if index == first:
                continue
            load = overload(index, active)
            if load <= 1:
                return states[index]
            if load < least:
                best, least = index, load
        return states[best]

    return pick


def _shuffled(count: int, key: int) -> Iterator[int]:
    """The numbers below `count` in an order that the key decides: Envoy's, so that all agree."""
    indexes = list(range(count))
    draws = _mersenne_twister(key & 0xFFFFFFFF)
    for i in range(count):
        left = count - i
        step = (1 << 32) // left
        draw = left
        while draw >= left:
            draw = next(draws) // step
        indexes[i], indexes[i + draw] = indexes[i + draw], indexes[i]
        yield indexes[i]


def _mersenne_twister(seed: int) -> Iterator[int]:
    """`std::mt19937`, whose way of seeding Python's does not have."""
    state = [seed]
    for i in range(1, 624):
        seed = (1812433253 * (seed ^ seed >> 30) + i) & 0xFFFFFFFF
        state.append(seed)
    while True:
        for i in range(624):
            y = state[i] & 0x80000000 | state[(i + 1) % 624] & 0x7FFFFFFF
            state[i] = state[(i + 397) % 624] ^ y >> 1 ^ (0x9908B0DF if y & 1 else 0)
            y = state[i]
            y ^= y >> 11
            y ^= y << 7 & 0x9D2C5680
            y ^= y << 15 & 0xEFC60000
            yield y ^ y >> 18
