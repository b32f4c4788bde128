"""From scans to shards of patches; knows nothing of networks. Start at shards.py."""
