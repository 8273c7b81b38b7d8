"""Encoded bytes → decoded frames."""
