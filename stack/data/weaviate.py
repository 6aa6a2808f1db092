#!/usr/bin/env python3
"""Seed data and checksum of a Weaviate server: `weaviate.py seed URL MEGABYTES`, `weaviate.py checksum URL`.

The API key is in WEAVIATE_API_KEY. Only Python's own library."""

import hashlib
import json
import os
import sys
import urllib.error
import urllib.request

DIMENSIONS = 384
# About what an object of SeedPages takes on the server's disk, in bytes.
OBJECT = 3200


def call(method, path, body=None):
    request = urllib.request.Request(base + path, method=method)
    request.add_header("Content-Type", "application/json")
    if os.environ.get("WEAVIATE_API_KEY"):
        request.add_header("Authorization", "Bearer " + os.environ["WEAVIATE_API_KEY"])
    data = None if body is None else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(request, data, timeout=120) as answer:
            text = answer.read()
            return json.loads(text) if text else None
    except urllib.error.HTTPError as e:
        print(f"{method} {path}: {e.code} {e.read().decode()[:300]}")
        sys.exit(1)


def vector(n, dimensions=DIMENSIONS):
    state = (n * 2654435761 + 12345) % 2147483647 or 1
    out = []
    for _ in range(dimensions):
        state = state * 48271 % 2147483647
        out.append(state / 2147483647)
    return out


def identity(n, group):
    return f"00000000-0000-4000-{0x8000 + group:04x}-{n:012x}"


def put(objects):
    for one in call("POST", "/v1/batch/objects", {"objects": objects}):
        if one["result"].get("errors"):
            print(one["result"]["errors"])
            sys.exit(1)


def fill(name, many, group, make):
    for start in range(0, many, 500):
        put([{"class": name, "id": identity(n, group), **make(n)} for n in range(start, min(many, start + 500))])


def seed(megabytes):
    if any(c["class"] == "SeedEmpty" for c in call("GET", "/v1/schema")["classes"]):
        print("collection SeedEmpty")
        sys.exit(3)
    text = {"name": "text", "dataType": ["text"]}
    number = {"name": "number", "dataType": ["int"]}
    # A coarse index: the vectors are random, and building a good one is most of the time that seeding takes.
    call("POST", "/v1/schema", {"class": "SeedPages", "vectorizer": "none",
                                "vectorIndexConfig": {"efConstruction": 32, "maxConnections": 16}, "properties": [
        text, number, {"name": "when", "dataType": ["date"]}, {"name": "tags", "dataType": ["text[]"]},
        {"name": "place", "dataType": ["geoCoordinates"]}]})
    fill("SeedPages", max(200, megabytes * 1000000 // OBJECT), 0, lambda n: {"vector": vector(n), "properties": {
        "text": f"page {n} of the seed, with \u00fcml\u00e4uts and \U0001f980", "number": n,
        "when": f"2020-01-{1 + n % 28:02}T00:00:00Z", "tags": ["a", f"t{n % 17}"],
        "place": {"latitude": n * 7919 % 90000 / 1000, "longitude": n * 104729 % 180000 / 1000}}})
    call("POST", "/v1/schema", {"class": "SeedNamed", "properties": [text], "vectorConfig": {
        "title": {"vectorizer": {"none": {}}, "vectorIndexType": "hnsw"},
        "body": {"vectorizer": {"none": {}}, "vectorIndexType": "flat"}}})
    fill("SeedNamed", 100, 1, lambda n: {"properties": {"text": f"named {n}"}, "vectors": {
        "title": vector(n, 16), "body": vector(n + 1000, 32)}})
    call("POST", "/v1/schema", {"class": "SeedTenants", "vectorizer": "none", "properties": [text, number],
                                "multiTenancyConfig": {"enabled": True}})
    tenants = ["tenant-a", "tenant-b", "tenant-asleep"]
    call("POST", "/v1/schema/SeedTenants/tenants", [{"name": t} for t in tenants])
    for group, tenant in enumerate(tenants):
        fill("SeedTenants", 100 + group, 2 + group, lambda n, t=tenant: {
            "tenant": t, "vector": vector(n, 32), "properties": {"text": f"{t} {n}", "number": n}})
    call("PUT", "/v1/schema/SeedTenants/tenants", [{"name": "tenant-asleep", "activityStatus": "INACTIVE"}])
    # The last one: it tells that all is there.
    call("POST", "/v1/schema", {"class": "SeedEmpty", "vectorizer": "none", "properties": [text]})


def sha(value):
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:40]


def objects(name, tenant):
    found, after = [], ""
    while True:
        page = call("GET", f"/v1/objects?class={name}&limit=500&include=vector{tenant}{after}")["objects"]
        if not page:
            return found
        found += [sha(o) for o in page]
        after = f"&after={page[-1]['id']}"


def neighbours(name, tenant):
    page = call("GET", f"/v1/objects?class={name}&limit=3&include=vector{tenant and '&tenant=' + tenant}")["objects"]
    out = []
    for one in page:
        vectors = {"": one["vector"]} if one.get("vector") else one.get("vectors") or {}
        for target, query in sorted(vectors.items()):
            target = f',targetVectors:["{target}"]' if target else ""
            of = f',tenant:"{tenant}"' if tenant else ""
            query = f"{{Get{{{name}(limit:10,nearVector:{{vector:{json.dumps(query)}{target}}}{of}){{_additional{{id}}}}}}}}"
            out.append(call("POST", "/v1/graphql", {"query": query}))
    return out


def checksum():
    for one in sorted(call("GET", "/v1/schema")["classes"], key=lambda c: c["class"]):
        name = one["class"]
        if name.startswith("Writer"):
            continue
        print(f"collection {name} {sha([one.get(k) for k in ('properties', 'vectorIndexType', 'vectorConfig')])}")
        tenants = [("", "HOT")]
        if one.get("multiTenancyConfig", {}).get("enabled"):
            tenants = sorted((t["name"], t["activityStatus"]) for t in call("GET", f"/v1/schema/{name}/tenants"))
        for tenant, status in tenants:
            label = f"{name} {tenant} {status}".replace("  ", " ")
            if status not in ("HOT", "ACTIVE"):
                print(label)
                continue
            found = objects(name, tenant and f"&tenant={tenant}")
            print(f"{label} objects {len(found)} sum {sha(sorted(found))} neighbours {sha(neighbours(name, tenant))}")


verb, base = sys.argv[1], sys.argv[2].rstrip("/")
if verb == "seed":
    seed(int(sys.argv[3]))
else:
    checksum()
