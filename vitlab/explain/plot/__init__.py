"""Figures of explanations. They take arrays and text; nothing here knows a model."""
