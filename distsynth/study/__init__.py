"""From a cohort to a verdict: what the data and the machine allow, planned and carried out."""
