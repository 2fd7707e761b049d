"""Mixtures: recipes, the order of rows, manifests, and the build that makes them."""
