"""Each role may do its work with the rights that ship for it, and nothing else."""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import cast
from unittest import mock

import psycopg
import pytest
from botocore.exceptions import ClientError
from jobs.fake_adapter import model_info
from jobs.machines import png, postgres_or_skip

from deploy.arrangement import Program, answers, free_port
from deploy.stores import BUCKET, ROLES, SUPERUSER, Bucket, Database, policy_of, s3_command
from deploy.test_chart import scaling_query
from service.blobs import Objects, digest_of, open_objects, shared_key
from service.errors import JobsUnavailable, NoSuchObject, ObjectsUnavailable
from service.jobs import database, heartbeat
from service.jobs.followups import Followup, add_followup, read_followup
from service.jobs.job import spec_of
from service.jobs.jobs import Jobs, open_jobs
from service.names.picture_names import PictureNames
from service.names.version import NamedStream, PictureVersion
from service.settings import Settings

STREAM = b"a stream"
LARGE = bytes(6 << 20)
"""So large that obstore sends it in several parts."""

JOB = "jobs/0123456789abcdef0123456789abcdef"
IMAGE = f"{JOB}/image"
RESULT = f"{JOB}/result"
STREAM_KEY = shared_key(digest_of(STREAM))
NAME, FOLLOWUP = "names/a/b.jpg/@/00000001", "followups/0123/name-1"
KEYS = (STREAM_KEY, IMAGE, RESULT, NAME, FOLLOWUP, "workers/w", "check/1", "other")

MAY = {
    "server": {
        "list",
        *(f"{verb} {STREAM_KEY}" for verb in ("get", "put")),
        *(f"{verb} {IMAGE}" for verb in ("get", "put")),
        f"get {RESULT}",
        *(f"{verb} {NAME}" for verb in ("get", "put", "delete")),
        f"put {FOLLOWUP}",
    },
    "worker": {
        "list",
        *(f"{verb} {IMAGE}" for verb in ("get", "put", "delete")),
        *(f"{verb} {RESULT}" for verb in ("get", "put", "delete")),
        *(f"{verb} check/1" for verb in ("get", "put", "delete")),
        *(f"{verb} workers/w" for verb in ("put", "delete")),
        *(f"{verb} {STREAM_KEY}" for verb in ("get", "put")),
        *(f"{verb} {NAME}" for verb in ("get", "put", "delete")),
        *(f"{verb} {FOLLOWUP}" for verb in ("get", "delete")),
    },
    "decoder": {"list", f"get {STREAM_KEY}", f"get {NAME}"},
}
"""All that each role may do of what is tried."""


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bucket]:
    port = free_port()
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    server = Program("s3", s3_command(port), tmp_path_factory.mktemp("s3"), kept)
    try:
        server.wait_for(lambda: answers(f"http://127.0.0.1:{port}/moto-api/"))
        yield Bucket(f"http://127.0.0.1:{port}")
    finally:
        server.stop()


@pytest.fixture(scope="module")
def postgres() -> Iterator[Database]:
    with postgres_or_skip() as (programs, folder):
        server = Database(programs, folder)
        try:
            yield server
        finally:
            server.stop()


def objects_of(bucket: Bucket, role: str) -> Objects:
    variables = bucket.variables(role)
    with mock.patch.dict(os.environ, variables):
        return open_objects(variables["RANKPRESS_OBJECTS_URL"], 10)


PUTS: list[PictureVersion] = []
"""What the server put, which the worker improves."""

SIZES = iter(range(90, 0, -1))
"""Bytes of the worker's streams, each better than the one before."""


def named(data: bytes) -> NamedStream:
    return NamedStream(
        sha256=digest_of(data), size_bytes=len(data), width=9, height=9, rate=4.0, tune="psnr",
        mse=1.0, visible=1.0,
    )  # fmt: skip


def serve(objects: Objects) -> None:
    """What a compressing server does with objects."""
    assert objects.head("objects/00/missing") is None
    for data in (STREAM, STREAM, LARGE):
        objects.get(objects.put(data))
    objects.put_named(IMAGE, STREAM)
    objects.put_named(IMAGE, LARGE)
    with suppress(NoSuchObject):
        objects.get(RESULT)
    names = PictureNames(objects)
    for data in (bytes(100), bytes(99)):
        PUTS.append(names.put("a/b.jpg", data, named(data), digest_of(data)).version)
    assert not objects.create(f"names/a/b.jpg/@/{PUTS[-1].number:08d}", b"another one")
    jobs = SimpleNamespace(objects=objects, table=SimpleNamespace(find=lambda _: None))
    add_followup(cast(Jobs, jobs), Followup(JOB.rpartition("/")[2], "name", {"name": "a/b.jpg"}))


def work(objects: Objects) -> None:
    """What a worker does with objects."""
    objects.check()
    heartbeat.beat(objects, "w")
    assert heartbeat.live_workers(objects) >= {"w"}
    heartbeat.leave(objects, "w")
    for data in (b"1", LARGE):
        objects.get(objects.put(data, JOB))
    objects.put_named(IMAGE, LARGE)
    assert objects.delete_all(JOB) >= 3
    objects.delete_all("workers", older_than_s=1000)
    *_, followup = objects.list("followups")
    assert read_followup(objects, followup).kind == "name"
    smaller = bytes(next(SIZES))
    objects.get(objects.put(smaller))
    job = JOB.rpartition("/")[2]
    improve = PictureNames(objects).improve
    assert improve("a/b.jpg", PUTS[-1].put, smaller, 1.0, job, 0.01, 0.0)


def decode(objects: Objects) -> None:
    """What a decode-only server does with objects."""
    assert objects.head("objects/00/missing") is None
    assert objects.get(STREAM_KEY) == STREAM
    version = PictureNames(objects).present("a/b.jpg")
    assert version.stream and objects.get(shared_key(version.stream.sha256))


DOES = {"server": serve, "worker": work, "decoder": decode}
"""In this order, for the decoder reads what the server kept."""


def test_each_role_can_do_its_work(bucket: Bucket) -> None:
    for role, does in DOES.items():
        does(objects_of(bucket, role))


@pytest.mark.parametrize("role", ROLES)
def test_a_role_can_do_nothing_else(bucket: Bucket, role: str) -> None:
    client, owner = bucket.client(role), bucket.client("root")
    acts: dict[str, Callable[[str], object]] = {
        "get": lambda key: client.get_object(Bucket=BUCKET, Key=key),
        "put": lambda key: client.put_object(Bucket=BUCKET, Key=key, Body=b""),
        "delete": lambda key: client.delete_object(Bucket=BUCKET, Key=key),
    }
    could = set()
    for key in KEYS:
        for verb, act in acts.items():
            owner.put_object(Bucket=BUCKET, Key=key, Body=STREAM)
            if not denied(lambda act=act, key=key: act(key)):
                could.add(f"{verb} {key}")
    if not denied(lambda: client.list_objects_v2(Bucket=BUCKET)):
        could.add("list")
    assert could == MAY[role]
    assert denied(client.list_buckets)
    assert denied(lambda: client.create_bucket(Bucket="another"))
    assert denied(lambda: client.delete_bucket(Bucket=BUCKET))
    assert denied(lambda: client.put_bucket_policy(Bucket=BUCKET, Policy="{}"))
    assert denied(lambda: bucket.client(role, "iam").create_user(UserName="another"))


@pytest.mark.parametrize("role", ROLES)
def test_a_role_needs_each_of_its_rights(bucket: Bucket, role: str) -> None:
    serve(objects_of(bucket, "server"))  # what decoders read
    whole = policy_of(role)
    try:
        for number, statement in enumerate(whole["Statement"]):
            for name, another in (("Action", "s3:GetBucketTagging"), ("Resource", ANOTHER)):
                for place, right in enumerate(statement[name]):
                    if right in NOT_SEEN or (role, right) in NOT_SEEN:
                        continue
                    less = copy.deepcopy(whole)
                    less["Statement"][number][name][place] = another
                    bucket.give(role, less)
                    with pytest.raises(ObjectsUnavailable):
                        DOES[role](objects_of(bucket, role))
    finally:
        bucket.give(role, whole)


ANOTHER = "arn:aws:s3:::another"

NOT_SEEN = {
    # An upload that failed between two parts needs it.
    "s3:AbortMultipartUpload",
    # See deploy.stores: moto checks it where the call is for one key.
    "s3:DeleteObject",
    # Without it S3 answers 403 in place of 404, moto 404. Workers also list.
    ("server", "s3:ListBucket"),
    ("server", f"arn:aws:s3:::{BUCKET}"),
    ("decoder", "s3:ListBucket"),
    ("decoder", f"arn:aws:s3:::{BUCKET}"),
}
"""Rights whose lack obstore does not notice with moto."""


def test_jobs_need_no_superuser(postgres: Database, tmp_path: Path) -> None:
    settings = Settings(
        jobs_url=postgres.url(), objects_url=str(tmp_path / "objects"), state=tmp_path / "state"
    )
    url = database.prepare(settings)
    assert database.prepare(settings) == url
    jobs = open_jobs(settings, url)
    try:
        image = png()
        with connected(postgres.url()) as role:

            def jobs_to_scale_on() -> object:
                return role.execute(scaling_query()).fetchone()

            assert jobs_to_scale_on() == (0,)
            job = jobs.submit(image, spec_of(image, 20, 12, 4.0, 1, (model_info(),)), 5)
            assert jobs_to_scale_on() == (1,)
            assert jobs.cancel(job.id).state == "cancelled"
            assert jobs_to_scale_on() == (0,)
        assert [j.id for j in jobs.table.recent()] == [job.id]
    finally:
        jobs.close()


def test_the_role_of_the_jobs_owns_its_schema_alone(postgres: Database) -> None:
    with connected(postgres.url()) as role:
        rights = role.execute(
            "SELECT rolsuper, rolcreatedb, rolcreaterole, rolreplication, rolbypassrls"
            " FROM pg_roles WHERE rolname = current_user"
        ).fetchone()
        assert rights == (False,) * 5
        owned = role.execute(
            "SELECT nspname FROM pg_namespace WHERE pg_get_userbyid(nspowner) = current_user"
        ).fetchall()
        assert owned == [("dbos",)]
        for refused in (
            "CREATE ROLE another",
            "CREATE DATABASE another",
            "CREATE SCHEMA another",
            "CREATE TABLE public.another (n int)",
            "CREATE TEMPORARY TABLE another (n int)",
            "SELECT * FROM pg_authid",
            "COPY (SELECT 1) TO PROGRAM 'true'",
            "SELECT pg_read_file('/etc/passwd')",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                role.execute(refused)
    with pytest.raises(psycopg.OperationalError, match="permission denied"):
        psycopg.connect(postgres.url(database="template1"))


def test_the_database_asks_for_the_password(postgres: Database) -> None:
    guessed = re.sub(":[^:]*@", ":guessed@", postgres.url())
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(guessed)
    with pytest.raises(JobsUnavailable, match="password authentication failed"):
        database.prepare(Settings(jobs_url=guessed))
    with connected(postgres.url(SUPERUSER, "postgres")) as superuser:
        assert superuser.execute("SHOW is_superuser").fetchone() == ("on",)


@contextmanager
def connected(url: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(url, autocommit=True) as connection:
        yield connection


def denied(call: Callable[[], object]) -> bool:
    """Whether a call was refused for want of rights; other errors mean that it was not."""
    try:
        call()
    except ClientError as error:
        return error.response["ResponseMetadata"]["HTTPStatusCode"] == 403
    return False
