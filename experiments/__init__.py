"""Experiments that back a claim of the README: they use everything, and nobody imports them."""
