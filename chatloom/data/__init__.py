"""Data: files of text, conversations and comparisons become checked records, token stores and packed batches."""
