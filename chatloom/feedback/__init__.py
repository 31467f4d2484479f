"""What people said and what they thought of the answers: conversations and feedback that is already training data.

`Store` keeps it, `export` writes what `chatloom reward` and `chatloom sft` read, `chatloom feedback` is its verb.
Only this folder and `server/accounts.py` know SQLAlchemy.
"""
