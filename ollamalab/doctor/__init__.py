"""Diagnosis of a host and its server: an inventory, and findings with evidence, consequence and fix.

``gather`` reads, ``examine`` judges; what cannot be read is ``Unread`` with the reason, and no rule guesses.
"""

from ollamalab.doctor.examine import RULES, examine
from ollamalab.doctor.gathering import gather
from ollamalab.doctor.inventory import Finding, Inventory, Unread

__all__ = ["RULES", "Finding", "Inventory", "Unread", "examine", "gather"]
