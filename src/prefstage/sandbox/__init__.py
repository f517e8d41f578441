"""A small world whose truth is known, and the demo that runs on it."""
