"""Doubles for tests: a byte tokenizer, tiny random models, a scripted engine. Only tests import this."""
