"""Attacks on what a trained model reveals about the people in its pictures."""
