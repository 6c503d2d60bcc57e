"""Istio and Kubernetes resources as frozen types, their parser and their validation."""
