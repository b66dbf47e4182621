"""The study: stages from raw files to results, claims and their verdicts, probes."""
