"""Looks for configuration that does not do what its author hoped.

Codes are Istio's (`IST0101`) where its analyzers have one, else ours:

    MSH0001  a field without effect             MSH0120  a rule's host is in no registry
    MSH0100  a kind is not enforced yet         MSH0121  the destination has no such port
    MSH0101  a security policy is not enforced  MSH0122  the destination is hidden by exportTo
    MSH0102  two documents, one identity        MSH0123  match.port is no port of the hosts
    MSH0103  kinds that are not the mesh's
    MSH0104  TLS that clients cannot do
    MSH0105  a field that nobody acts on yet
    MSH0106  mesh config where nobody reads it
    MSH0107  a field that is not honoured
    MSH0110  a delegate is hidden by exportTo   MSH0124  a rule speaks to gateways only
    MSH0111  a delegate's routes conflict       MSH0125  a fault affects no request
    MSH0130  a policy's host is in no registry  MSH0126  HTTP rules for a port that is not HTTP
    MSH0131  a subset selects no endpoint       MSH0127  a delegate that nobody refers to
    MSH0132  a subset is defined twice          MSH0140  a ServiceEntry selects no workload
    MSH0133  ejection cannot eject anybody      MSH0150  a sampling rate that looks like a fraction
    MSH0134  a policy reaches its own namespace only
    MSH0160  an EnvoyFilter's patch that SDK nodes do not get
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from controlplane.analysis.destinationrules import analyze_destination_rules
from controlplane.analysis.envoyfilters import analyze_envoy_filters
from controlplane.analysis.services import analyze_services
from controlplane.analysis.unapplied import analyze_unapplied
from controlplane.analysis.virtualservices import analyze_virtual_services

if TYPE_CHECKING:
    from controlplane.model.resource import Finding
    from controlplane.world import World


def analyze_world(world: World) -> list[Finding]:
    """Every finding about a finished world, by file and line. Pure."""
    found = [
        *analyze_virtual_services(world),
        *analyze_destination_rules(world),
        *analyze_services(world),
        *analyze_unapplied(world),
        *analyze_envoy_filters(world),
    ]
    return sorted(found, key=lambda finding: (finding.origin, finding.path, finding.code))
