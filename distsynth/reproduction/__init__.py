"""The paper's whole comparison on any cohort, by one command.

rows      what is compared: the paper's networks, the random forest, the controls it lacks
task      what was asked for: rows, seeds, budget; kept in reproduction.json
judge     a row on the test split, on stitched volumes, as a task of the cluster
run       all rows trained and judged, in parallel and resumable
tables    the comparison, the controls and the seams, from what was judged
"""
