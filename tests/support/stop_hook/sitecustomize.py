"""Python imports this module when it starts, in every process that `killing.py` prepares."""

from moments import watch_as_asked

watch_as_asked()
