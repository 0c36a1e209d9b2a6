"""Samplers: one file an engine, behind the protocol in base.py."""
