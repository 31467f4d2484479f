"""Evaluation: likelihood, generation, judging and the report that shows why the recipe works.

`intervals` computes every 95 % interval, `results` is the schema of report.json, `claims` holds the results
against what the recipe promises; `charts`, `plots` and `page` draw report.html. Judging and reporting import no torch,
and only `plots` imports matplotlib.
"""
