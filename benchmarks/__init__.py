"""Measurements behind the README's and docs' figures; each script runs as ``python -m benchmarks.PACKAGE.SCRIPT``.

shared      recordings, results files, full runs, paired timing, other people's HuBERT
speed       latency beside peers, where the time goes, memory, the s3prl upstream's cache
policies    exits under noise, fidelity against depth, the risk guarantee, daisy extract on the noisy test sets
units       discrete units at early exits: edit distance, bitrate and time, beside other people's tools
recognition recognisers that exit: error rates, policies and the guarantee
training    what pre-training and exit heads learnt, and which units to train on
robustness  files damaged at random, and kills at random moments: is anything lost or wrong?
minisuperb  MiniSUPERB's tasks on early-exit upstreams
distributed several processes and machines: extraction, and one network on many workers
results     what was measured: one JSON file a measurement, and its figure

From the root of the repository. ``benchmarks/real_run.sh`` runs all but ``distributed``, ``robustness`` and what takes
a GPU; ``benchmarks.readme`` renders the tables.
"""
