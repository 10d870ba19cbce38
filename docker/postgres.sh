#!/bin/sh
# Run by the postgres image at its first start, as the superuser: makes the role that servers and
# workers have, and their database. The role owns the schema of the jobs' tables and nothing else.
#   POSTGRES_USER   superuser
#   JOBS_PASSWORD   password of the role rankpress
set -eu

: "${JOBS_PASSWORD:?expected the password of the role rankpress}"
export JOBS_PASSWORD

psql --no-psqlrc --quiet --set ON_ERROR_STOP=1 --username "$POSTGRES_USER" --dbname postgres <<'SQL'
\getenv password JOBS_PASSWORD
CREATE ROLE rankpress LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS
    PASSWORD :'password';
CREATE DATABASE rankpress;
REVOKE ALL ON DATABASE rankpress, postgres, template1 FROM PUBLIC;
GRANT CONNECT ON DATABASE rankpress TO rankpress;
-- DBOS asks there whether its database exists.
GRANT CONNECT ON DATABASE postgres TO rankpress;
\connect rankpress
REVOKE ALL ON SCHEMA public FROM PUBLIC;
CREATE SCHEMA dbos AUTHORIZATION rankpress;
SQL
