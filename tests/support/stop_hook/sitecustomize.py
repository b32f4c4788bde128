"""Python imports this module when it starts, in every process that `killing.py` prepares."""

from moments import watch_as_asked
from warm_workers import take_over

take_over()
watch_as_asked()
