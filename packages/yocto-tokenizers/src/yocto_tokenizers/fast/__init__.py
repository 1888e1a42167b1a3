"""Plumbing: tables that make encoding fast, and checks of what callers hand in."""
