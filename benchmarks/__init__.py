"""Measurements behind the README's and docs' figures; each script runs as ``python -m benchmarks.PACKAGE.SCRIPT``.

shared      recordings, results files, full runs, paired timing, other libraries' HuBERT
speed       latency compared with other libraries, where the time goes, memory, the cache of the s3prl upstream
policies    exits under noise, fidelity against depth, the risk guarantee, daisy extract on the noisy test sets
units       discrete units at early exits: edit distance, bitrate and time, compared with other tools
recognition recognisers with early exits: error rates, policies and the guarantee
training    what pre-training and exit heads learnt, and which units to train on
robustness  randomly damaged files and kills at random moments: is anything lost or wrong?
minisuperb  MiniSUPERB's tasks on early-exit upstreams
distributed several processes and machines: extraction, and one network split over many workers
results     the measurements: one JSON file each, and its figure

Run them from the root of the repository. ``benchmarks/real_run.sh`` runs all except ``distributed``, ``robustness`` and
whatever needs a GPU; ``benchmarks.readme`` renders the tables.
"""
