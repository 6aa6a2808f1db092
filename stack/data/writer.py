#!/usr/bin/env python3
"""Writes to a server until it is ended, one small write after the other, and notes each that was acknowledged:

    writer.py neo4j|weaviate ADDRESS FILE    a line for each: its number, and the milliseconds since the one before
    writer.py gap FILE [FROM]                the longest of those after line FROM
    writer.py found ADDRESS                  how many of them a Weaviate server has, and the number of the last one

Numbers begin with 1. A write that fails is tried again, with the same number. The password is in NEO4J_PASSWORD or
WEAVIATE_API_KEY. Only Python's own library."""

import base64
import http.client
import json
import os
import sys
import time
import urllib.parse


def authorization():
    return "Basic " + base64.b64encode(("neo4j:" + os.environ["NEO4J_PASSWORD"]).encode()).decode()


def neo4j(connection, n):
    # The second time it is there already.
    query = {"statement": "MERGE (:Writer {n: $n})", "parameters": {"n": n}}
    answer = post(connection, "/db/neo4j/tx/commit", {"statements": [query]}, authorization())
    if answer["errors"]:
        raise OSError(answer["errors"][0]["message"])


def weaviate(connection, n):
    one = {"class": "WriterPages", "id": f"00000000-0000-4000-9000-{n:012x}", "vector": [n % 7, 1.0, n % 3],
           "properties": {"n": n}}
    answer = post(connection, "/v1/batch/objects", {"objects": [one]}, "Bearer " + os.environ["WEAVIATE_API_KEY"])
    if answer[0]["result"].get("errors"):
        raise OSError(str(answer))


def post(connection, path, body, authorization):
    headers = {"Content-Type": "application/json", "Authorization": authorization}
    connection.request("POST", path, json.dumps(body), headers)
    answer = connection.getresponse()
    text = answer.read()
    if answer.status >= 300:
        raise OSError(f"{path}: {answer.status} {text[:200]}")
    return json.loads(text)


def write(kind, address, file):
    put = {"neo4j": neo4j, "weaviate": weaviate}[kind]
    place = urllib.parse.urlsplit(address).netloc
    connection, n, last = None, 1, time.monotonic()
    with open(file, "w", buffering=1, encoding="ascii") as out:
        while True:
            try:
                connection = connection or http.client.HTTPConnection(place, timeout=30)
                put(connection, n)
            except (OSError, http.client.HTTPException, ValueError):
                connection = None
                time.sleep(0.01)
                continue
            now = time.monotonic()
            out.write(f"{n} {(now - last) * 1000:.0f}\n")
            n, last = n + 1, now
            time.sleep(0.005)


def found(address):
    # The objects themselves: an index may know of one that was written during a backup and is not in it.
    numbers, after = [], ""
    word = {"Authorization": "Bearer " + os.environ["WEAVIATE_API_KEY"]}
    connection = http.client.HTTPConnection(urllib.parse.urlsplit(address).netloc, timeout=30)
    while True:
        connection.request("GET", f"/v1/objects?class=WriterPages&limit=1000&after={after}", headers=word)
        page = json.loads(connection.getresponse().read())["objects"]
        if not page:
            break
        numbers += [one["properties"]["n"] for one in page]
        after = page[-1]["id"]
    print(len(set(numbers)), max(numbers))


def gap(file, start=0):
    with open(file, encoding="ascii") as lines:
        print(max(int(line.split()[1]) for line in list(lines)[int(start):] if line.endswith("\n")))


if __name__ == "__main__":
    if sys.argv[1] == "gap":
        gap(*sys.argv[2:])
    elif sys.argv[1] == "found":
        found(sys.argv[2])
    else:
        write(*sys.argv[1:])
