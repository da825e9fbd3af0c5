"""Retention: requests go when their time is over, and all that was said of them goes along.

Takes: a moment. Gives: the number of requests deleted. SQLite overwrites what it deletes.
"""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa

from lmloop.store.database import ratings_table, requests_table, reviews_table, transaction

BATCH = 1000
"""Requests of one transaction: a server that wants to write waits no longer than for these."""


def delete_expired(engine: sa.Engine, *, older_than: float) -> int:
    """Delete requests created before `older_than` (seconds since the epoch) with all about them.

    Ratings and reviews of that age whose request never came are deleted as well. A process that is
    killed has deleted some requests, each with its rating and review.
    """
    table = requests_table
    query = sa.select(table.c.id).where(table.c.created < older_than).order_by(table.c.created)
    deleted = 0
    while True:
        with transaction(engine) as connection:
            ids = connection.scalars(query.limit(BATCH)).all()
            delete_requests(connection, ids)
        deleted += len(ids)
        if len(ids) < BATCH:
            break
    with transaction(engine) as connection:
        for orphans, moment in ((ratings_table, "created"), (reviews_table, "decided")):
            gone = ~sa.exists().where(table.c.id == orphans.c.request_id)
            connection.execute(orphans.delete().where(orphans.c[moment] < older_than, gone))
    return deleted


def delete_requests(connection: sa.Connection, ids: Sequence[str]) -> tuple[int, int, int]:
    """Delete requests by id, their ratings and their reviews; how many of each there were."""
    keys = (requests_table.c.id, ratings_table.c.request_id, reviews_table.c.request_id)
    requests, ratings, reviews = (
        connection.execute(key.table.delete().where(key.in_(ids))).rowcount for key in keys
    )
    return requests, ratings, reviews
