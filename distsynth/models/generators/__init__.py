"""Families of generators, one file each: the configuration and the network beside it."""
