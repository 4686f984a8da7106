"""Retention: which agents, and which parts of them, a store no longer needs, and their removal."""

from kode_core.retention.applying import apply_retention
from kode_core.retention.policies import RetentionPolicy, checked_policies
from kode_core.retention.reports import PolicyReport, Retained, RetentionReport

__all__ = [
    "PolicyReport",
    "Retained",
    "RetentionPolicy",
    "RetentionReport",
    "apply_retention",
    "checked_policies",
]
