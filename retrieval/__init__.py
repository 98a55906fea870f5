"""From the published table to answers: indexes, searches, short vectors, vector stores, and the query side.

Reads what `schemas.published` calls live, or a named version of it; never Spark. Jobs call it from workers, the command
`itemsage` from a terminal, a service as a library.
"""
