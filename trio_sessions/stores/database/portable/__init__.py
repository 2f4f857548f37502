"""Operations in SQL that any database understands, made of what one says of itself.

Nothing here assumes SKIP LOCKED or cascades (RETURNING it does), and it takes several round trips.
"""
