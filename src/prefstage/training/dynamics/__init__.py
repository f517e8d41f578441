"""Dynamics: what training does to the rankings of fixed pairs, recorded step by step."""
