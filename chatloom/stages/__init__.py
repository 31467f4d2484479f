"""The stages of the recipe, one file each: a frozen `Config`, and `run(config)`, which reads like a sentence."""
