"""Policies judged from full runs: tables, figures, the page."""
