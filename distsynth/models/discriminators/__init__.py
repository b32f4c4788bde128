"""Families of discriminators, one file each: the configuration and the network beside it."""
