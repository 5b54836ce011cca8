"""Recognisers with early exits, trained on the available text and judged at every exit; run ``train`` first."""
