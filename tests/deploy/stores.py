"""The stores of the arrangement for many machines, each role with the rights that ship for it.

The bucket is moto's, which checks signatures and policies as S3 does, but for one thing: obstore
deletes with a call for several keys, and moto checks that against the bucket in place of the keys.
Here a role that may delete any key may delete all that way; a call for one key is checked by its
policy.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import boto3
import httpx
from jobs.machines import PostgresServer

DOCKER = Path(__file__).resolve().parent.parent.parent / "docker"
BUCKET = "rankpress"
ROLES = ("server", "worker", "decoder")
REGION = "us-east-1"
SUPERUSER = "postgres"

Policy = dict[str, Any]


def s3_command(port: int) -> list[str]:
    """Starts an S3 server without buckets and users, for `Bucket`."""
    return [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]


def policy_of(role: str) -> Policy:
    """The policy that ships for a role."""
    return dict(json.loads((DOCKER / "policies" / f"{role}.json").read_text()))


class Bucket:
    """A bucket on a fresh S3 server, and a user for each role.

    Attributes:
        url: where programs are told that it is.
    """

    def __init__(self, url: str) -> None:
        """Make them, then have policies enforced. moto lets anyone do anything before that."""
        self.url = self._url = url
        self._keys = {"nobody": ("nobody", "nothing")}
        self.client("nobody", "s3").create_bucket(Bucket=BUCKET)
        policies = {role: policy_of(role) for role in ROLES}
        policies["root"] = {"Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}]}
        users = self.client("nobody", "iam")
        for role, policy in policies.items():
            users.create_user(UserName=role)
            key = users.create_access_key(UserName=role)["AccessKey"]
            self._keys[role] = (key["AccessKeyId"], key["SecretAccessKey"])
            self._give("nobody", role, policy)
        httpx.post(f"{url}/moto-api/reset-auth", content=b"0").raise_for_status()

    def client(self, role: str, service: str = "s3") -> Any:
        """A boto3 client with the key of a role, or of `root` or `nobody`."""
        key, secret = self._keys[role]
        return boto3.client(
            service,
            endpoint_url=self._url,
            region_name=REGION,
            aws_access_key_id=key,
            aws_secret_access_key=secret,
        )

    def variables(self, role: str) -> dict[str, str]:
        """What obstore reads from the environment, and where the objects are."""
        key, secret = self._keys[role]
        return {
            "RANKPRESS_OBJECTS_URL": f"s3://{BUCKET}",
            "AWS_ENDPOINT": self.url,
            "AWS_ALLOW_HTTP": "true",
            "AWS_REGION": REGION,
            "AWS_ACCESS_KEY_ID": key,
            "AWS_SECRET_ACCESS_KEY": secret,
        }

    def give(self, role: str, policy: Policy) -> None:
        """Put a policy in place of what a role has."""
        self._give("root", role, policy)

    def _give(self, giver: str, role: str, policy: Policy) -> None:
        statements = list(policy["Statement"])
        if any("s3:DeleteObject" in statement["Action"] for statement in statements):
            several = {"Effect": "Allow", "Action": "s3:DeleteObject"}
            statements.append(several | {"Resource": f"arn:aws:s3:::{BUCKET}"})
        document = json.dumps({"Version": "2012-10-17", "Statement": statements})
        self.client(giver, "iam").put_user_policy(
            UserName=role, PolicyName="rights", PolicyDocument=document
        )


class Database:
    """A PostgreSQL server on which docker/postgres.sh was run, as the image runs it."""

    def __init__(self, programs: Path, folder: Path) -> None:
        self.passwords = {SUPERUSER: secrets.token_hex(12), "rankpress": secrets.token_hex(12)}
        self._server = PostgresServer(programs, folder, SUPERUSER, self.passwords[SUPERUSER])
        try:
            self._run_script()
        except BaseException:
            self.stop()
            raise

    def url(self, user: str = "rankpress", database: str = "rankpress") -> str:
        """Leads to a database, as a user with its password."""
        return (
            f"postgresql://{user}:{self.passwords[user]}@127.0.0.1:{self._server.port}/{database}"
        )

    def stop(self) -> None:
        self._server.stop()

    def _run_script(self) -> None:
        variables: Mapping[str, str] = {
            "PATH": os.environ["PATH"],
            "PGHOST": "127.0.0.1",
            "PGPORT": str(self._server.port),
            "PGPASSWORD": self.passwords[SUPERUSER],
            "POSTGRES_USER": SUPERUSER,
            "JOBS_PASSWORD": self.passwords["rankpress"],
        }
        script = ["sh", DOCKER / "postgres.sh"]
        done = subprocess.run(script, env=variables, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
