"""Recipes: the small honest experiment of each method, read top to bottom: data, model, baseline, metric, verdict."""
