"""From shards of patches to a judged model; start at config.py and train.py."""
