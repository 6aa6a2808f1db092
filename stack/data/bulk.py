#!/usr/bin/env python3
"""Fills a Neo4j server quickly with so many megabytes of nodes with long texts: bulk.py ADDRESS MEGABYTES

Half of the bytes are left when they are compressed. The password is in NEO4J_PASSWORD. Only Python's own library."""

import http.client
import json
import os
import sys
import urllib.parse

from writer import authorization, post

QUERY = "UNWIND $texts AS text CREATE (:Bulk {text: text})"
NODES = 500
LENGTH = 4000


def main():
    place = urllib.parse.urlsplit(sys.argv[1]).netloc
    connection = http.client.HTTPConnection(place, timeout=300)
    left = int(sys.argv[2]) * 1_000_000
    while left > 0:
        texts = [os.urandom(LENGTH // 2).hex() for _ in range(NODES)]
        statement = {"statement": QUERY, "parameters": {"texts": texts}}
        answer = post(connection, "/db/neo4j/tx/commit", {"statements": [statement]}, authorization())
        if answer["errors"]:
            sys.exit(answer["errors"][0]["message"])
        left -= NODES * LENGTH


main()
