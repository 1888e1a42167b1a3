"""Plumbing: tables that make encoding fast, and checks of what callers pass."""
