#!/bin/sh
# Does what the official image's entry point does, as far as docker-compose.yml relies on it, with Debian's Postgres.
set -e
PATH=$(echo /usr/lib/postgresql/*/bin):$PATH
PGDATA=/var/lib/postgresql/standin
export PATH PGDATA
as_postgres="setpriv --reuid=postgres --regid=postgres --init-groups"
if [ ! -s "$PGDATA/PG_VERSION" ]; then
    mkdir -p "$PGDATA" /var/run/postgresql
    cp "$POSTGRES_PASSWORD_FILE" /tmp/password
    chown -R postgres "$PGDATA" /var/run/postgresql /tmp/password
    $as_postgres initdb -U postgres -E UTF8 --locale=C.UTF-8 --auth-local=trust --auth-host=scram-sha-256 --pwfile=/tmp/password >/dev/null
    rm /tmp/password
    echo "host all all all scram-sha-256" >>"$PGDATA/pg_hba.conf"
    echo "CREATE DATABASE $POSTGRES_DB" | $as_postgres postgres --single postgres >/dev/null
fi
rm -f "$PGDATA/postmaster.pid"
exec $as_postgres "$@" -c listen_addresses='*'
