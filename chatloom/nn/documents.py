"""Which tokens of packed rows belong together: the numbers in `documents` (B, T).

0 is padding, and every document of a row has a number of its own. A document may *continue* another of its row: it
stands where that one ends and sees all of it. So K answers to a prompt cost the prompt once, and not K times. Numbers
that say so are int64; int32 numbers (`data.pack`) continue nothing, which is then known without looking.
"""

import torch
from torch import Tensor

_BITS = 20
LARGEST = (1 << _BITS) - 1  # number of a document, and so of documents in a row


def continuing(own: Tensor, parent: Tensor) -> Tensor:
    """The numbers, int64, of documents `own` that continue `parent` (0: none); both are at most LARGEST."""
    return own.long() + (parent.long() << _BITS)


def _continued(documents: Tensor) -> Tensor:
    """Whether each token's document continues the one that another token is of: (B, T, T) bool."""
    parent = documents >> _BITS
    return (parent[:, :, None] == (documents & LARGEST)[:, None, :]) & (parent[:, :, None] > 0)


def visible(documents: Tensor) -> Tensor:
    """Whether each token sees each other one, itself included: (B, T, T) bool."""
    own = documents & LARGEST
    seen = own[:, :, None] == own[:, None, :]
    if documents.dtype == torch.int64:
        seen |= _continued(documents)
    return seen.tril_()


def positions(documents: Tensor) -> Tensor:
    """Where each token stands in its document, or after the one that it continues: (B, T) int64.

    A document is one stretch of the row.
    """
    starts = torch.ones_like(documents, dtype=torch.bool)
    starts[:, 1:] = documents[:, 1:] != documents[:, :-1]
    index = torch.arange(documents.shape[1], device=documents.device).expand(documents.shape)
    places = index - torch.where(starts, index, 0).cummax(dim=1).values
    if documents.dtype == torch.int64:
        places = places + _continued(documents).sum(-1)  # the length of what it continues
    return places
