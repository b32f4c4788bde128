"""Losses of generator and discriminator, one file a term (section 6.4, equations 1 to 5)."""
