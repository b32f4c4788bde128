"""What to search: one module a space, each a function that returns a dict.

A space maps dotted fields of RunConfig to Ray Tune domains; `with_overrides(preset, point)` turns
a sampled point into a configuration. Spaces compose by merging their dicts.
"""
