"""Rankpress: a neural image codec served over HTTP. See README.md for the tree."""
