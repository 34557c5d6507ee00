"""Rivals that run in a Python of their own."""
