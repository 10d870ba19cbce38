#!/bin/sh
# Starts nginx with nginx.conf, for the servers that the environment names; arguments go to nginx.
#   SERVERS      compressing servers, host:port, separated by spaces
#   DECODERS     decode-only servers likewise; without any the servers decode
#   LISTEN       port, or address:port; 8080
#   CACHE_DIR    folder of the cache and of bodies, CACHE_SIZE its limit (10g)
#   RUN_DIR      folder of the configuration as it is run
#   CLIENT_CONNECTIONS  requests of one client at a time, 128; of them CLIENT_UPLOADS, 32, may have
#                       a body; CLIENT_RATE in a second, 100, and five times as many at once
#   TRUSTED_PROXIES     networks of proxies in front of this one, separated by spaces, whose
#                       X-Forwarded-For says who the client is; without, its address does
#   WRITE_TOKEN  bearer token of those who may write /objects and /pictures, and list the latter;
#                nobody may without one
#   RESOLVER     name server that is asked again and again where names' addresses change, as those
#                of containers do; needs nginx 1.27.3
set -eu

: "${SERVERS:?expected host:port of the compressing servers, separated by spaces}"
run=${RUN_DIR:-/tmp/rankpress-nginx}
cache=${CACHE_DIR:-/var/cache/nginx}
resolve=${RESOLVER:+ resolve}

refuse() {
    echo "$1" >&2
    exit 2
}
connections=${CLIENT_CONNECTIONS:-128} uploads=${CLIENT_UPLOADS:-32} rate=${CLIENT_RATE:-100}
case "$connections$uploads$rate" in
    *[!0-9]*) refuse "CLIENT_CONNECTIONS, CLIENT_UPLOADS and CLIENT_RATE are whole numbers" ;;
esac
case "$SERVERS ${DECODERS:-} ${LISTEN:-} $cache ${CACHE_SIZE:-} ${RESOLVER:-} ${TRUSTED_PROXIES:-}" in
    *[!A-Za-z0-9.:/_\ \[\]-]*) refuse "a setting has a character that nginx would take for its own" ;;
esac
case "${WRITE_TOKEN:-}" in
    *[!A-Za-z0-9._~+/=-]*) refuse "WRITE_TOKEN has a character that bearer tokens cannot have" ;;
esac
token=${WRITE_TOKEN:-}
[ -z "$token" ] || [ "${#token}" -ge 16 ] || refuse "WRITE_TOKEN has ${#token} characters, expected 16 or more"

# Servers close a connection that was idle for 75 s; nginx must be the first.
upstream() {
    printf 'upstream %s {\n    zone %s 128k;\n    %s\n' "$1" "$1" "$2"
    for server in $3; do
        printf '    server %s max_fails=2 fail_timeout=5s%s;\n' "$server" "$resolve"
    done
    for server in $4; do
        printf '    server %s max_fails=2 fail_timeout=5s backup%s;\n' "$server" "$resolve"
    done
    printf '    keepalive 16;\n    keepalive_timeout 60s;\n}\n'
}

umask 077
mkdir -p "$run" "$cache"
{
    [ -z "${RESOLVER:-}" ] || printf 'resolver %s valid=5s;\n' "$RESOLVER"
    upstream servers 'least_conn;' "$SERVERS" ''
    # shellcheck disable=SC2016  # nginx' variable
    upstream servers_by_rate 'hash $rate_key consistent;' "$SERVERS" ''
    if [ -n "${DECODERS:-}" ]; then
        upstream decoders 'least_conn;' "$DECODERS" "$SERVERS"
    else
        upstream decoders 'least_conn;' "$SERVERS" ''
    fi
    printf 'proxy_cache_path %s/pictures levels=1:2 keys_zone=pictures:32m max_size=%s ' \
        "$cache" "${CACHE_SIZE:-10g}"
    printf 'inactive=90d use_temp_path=off;\n'
    # shellcheck disable=SC2016
    printf 'limit_conn_zone $limited_client zone=clients:10m;\nlimit_conn clients %s;\n' "$connections"
    # shellcheck disable=SC2016
    printf 'limit_conn_zone $limited_sender zone=senders:10m;\nlimit_conn senders %s;\n' "$uploads"
    # shellcheck disable=SC2016
    printf 'limit_req_zone $limited_client zone=requests:10m rate=%sr/s;\n' "$rate"
    printf 'limit_req zone=requests burst=%s nodelay;\n' "$((rate * 5))"
    for proxy in ${TRUSTED_PROXIES:-}; do
        printf 'set_real_ip_from %s;\n' "$proxy"
    done
    [ -z "${TRUSTED_PROXIES:-}" ] || printf 'real_ip_header X-Forwarded-For;\nreal_ip_recursive on;\n'
    # shellcheck disable=SC2016
    printf 'map $http_authorization $may_write {\n    default 0;\n'
    [ -z "$token" ] || printf '    "Bearer %s" 1;\n' "$token"
    printf '}\n'
} >"$run/site.conf"
printf 'listen %s;\n' "${LISTEN:-8080}" >"$run/listen.conf"
cat "$(dirname "$0")/nginx.conf" >"$run/nginx.conf"

exec nginx -e stderr -p "$run" -c "$run/nginx.conf" -g 'daemon off;' "$@"
