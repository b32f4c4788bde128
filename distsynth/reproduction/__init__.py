"""The paper's whole comparison on any cohort, by one command.

rows               what is compared: the paper's networks, the random forest, the missing controls
task               what was asked for: rows, seeds, budget; kept in reproduction.json
row_evaluation     a row on the test split, on stitched volumes, as a task of the cluster
run                all rows trained and evaluated, in parallel and resumable
comparison         means, intervals and tests of differences
comparison_tables  the tables and their columns, as text, LaTeX and HTML
comparison_files   every number, as CSV and JSON
collect            the comparison, the questions and the seams of a reproduction's folder
page               the HTML page
"""
