#!/bin/sh
# Makes the bucket, and a user of the S3 store for each role with the rights in policies/ROLE.json.
# It may be run again: secrets and policies are then brought up to date.
#   STORE_URL                       of the S3 store
#   ROOT_KEY, ROOT_SECRET           who may make users
#   SERVER_KEY, SERVER_SECRET       of the compressing servers; WORKER_* and DECODER_* likewise
set -eu

policies=${POLICIES:-$(dirname "$0")/policies}

user() {
    mc admin policy create store "$1" "$policies/$1.json"
    mc admin user add store "$2" "$3"
    mc admin policy attach store "$1" --user "$2"
}

mc alias set store "$STORE_URL" "$ROOT_KEY" "${ROOT_SECRET:?expected the secret of $ROOT_KEY}"
mc mb --ignore-existing store/rankpress
user server "$SERVER_KEY" "${SERVER_SECRET:?expected the secret of $SERVER_KEY}"
user worker "$WORKER_KEY" "${WORKER_SECRET:?expected the secret of $WORKER_KEY}"
user decoder "$DECODER_KEY" "${DECODER_SECRET:?expected the secret of $DECODER_KEY}"
