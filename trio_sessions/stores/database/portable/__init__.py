"""Operations in SQL that any database understands, made of what one says of itself.

Nothing here assumes RETURNING, SKIP LOCKED or cascades, and it takes several round trips.
"""
