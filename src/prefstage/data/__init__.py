"""Readers for every known preference format, validation, and tokenisation."""
