"""Recognisers that exit, trained on the text at hand, judged at every exit; first ``benchmarks.recognition.train``."""
