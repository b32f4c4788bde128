"""What to search: one module a space, each a function that returns a dict.

A space maps dotted fields of RunConfig to Ray Tune domains; hyperparameters map the same fields to
plain values. A bare `generator` or `discriminator` names a whole network, `adversarial` a loss with
what it asks of the discriminator; dotted fields are applied on top. Spaces compose by merging their
dicts; if two define the same field, the later one wins.

Nothing is imported here, because Ray Tune takes seconds: `tune_spaces.registry` lists the spaces,
`tune_spaces.named` finds them by name or file, `tune_spaces.plain` writes them as YAML and JSON.
"""
