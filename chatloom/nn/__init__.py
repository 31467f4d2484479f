"""Building blocks that every model family is wired from.

Shape legend, used in every comment of the package: `B` batch, `T` time (tokens), `C` channels (model width),
`H` query heads, `G` key/value heads, `D` head width, `V` vocabulary, `E` experts, `K` responses to one prompt.
"""
