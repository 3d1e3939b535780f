"""The block codec: adaptive, context-modelled binary range coding over fields. docs/formats/block.md has every byte.

    coder       bits with probabilities <-> bytes
    mixer       one probability from two contexts
    models      a probability for each context that ever occurred, fresh or from a trained table
    number      residuals and first values, bit by bit, in their contexts
    payload     a row of fields, predicted from the rows before it
    checksum    bytes that follow from the others
    order       who is next on the bus, and how long after
    lines       times within a tolerance
    streams     what frames are, and the way of their payloads        raw        frames <-> a block's inside
    groups      what columns are        values, turns, ticks          signals    columns <-> a block's inside

Every model is one function that runs in both directions: it is given the value when it writes, and returns the value
when it reads, so that the two cannot disagree. Integers only: every machine makes the same bytes.
"""
