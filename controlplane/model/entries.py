"""ServiceEntry, WorkloadEntry and WorkloadGroup as frozen types."""

# ruff: noqa: RUF012 - msgspec makes a fresh copy of an empty default
from __future__ import annotations

from typing import Any

from controlplane.model.traffic import Spec


class WorkloadEntrySpec(Spec, frozen=True):
    address: str = ""
    ports: dict[str, int] = {}
    labels: dict[str, str] = {}
    network: str = ""
    locality: str = ""
    weight: int = 0
    service_account: str = ""


class EntryPort(Spec, frozen=True):
    number: int = 0
    protocol: str = ""
    name: str = ""
    target_port: int = 0


class LabelSelector(Spec, frozen=True):
    labels: dict[str, str] = {}


class ServiceEntrySpec(Spec, frozen=True):
    hosts: tuple[str, ...] = ()
    addresses: tuple[str, ...] = ()
    ports: tuple[EntryPort, ...] = ()
    location: str = "MESH_EXTERNAL"
    resolution: str = "NONE"
    endpoints: tuple[WorkloadEntrySpec, ...] = ()
    workload_selector: LabelSelector | None = None
    export_to: tuple[str, ...] = ()
    subject_alt_names: tuple[str, ...] = ()


class GroupMetadata(Spec, frozen=True):
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}


class WorkloadGroupSpec(Spec, frozen=True):
    metadata: GroupMetadata = GroupMetadata()
    template: WorkloadEntrySpec = WorkloadEntrySpec()
    probe: dict[str, Any] | None = None
