"""Recipes, augmentation, the one training loop with its hooks, metrics, curvature, isolation."""
