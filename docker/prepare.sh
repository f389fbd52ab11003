#!/usr/bin/env bash
# What Compose cannot check or do by itself, between `make certs` and `docker compose up`.
#
# The containers never run as root, and private keys stay 0600. A user's containers run under the user's own
# id. Root's run under an id of their own, which is given the files of SuperLink and of the sites; ca.key
# stays root's.
set -euo pipefail
cd "$(dirname "$0")/.."

CONTAINER_UID=10001
certs=certs/generated

fail() {
	echo "error: $*" >&2
	exit 2
}

[[ -f $certs/superlink/server.key ]] || fail "$certs has no certificates; run make certs"
uid=$(id -u) gid=$(id -g)
if ((uid == 0)); then
	uid=$CONTAINER_UID gid=$CONTAINER_UID
	chown -R "$uid:$gid" "$certs/superlink" "$certs/sites"
fi
touch .env
grep -q '^FEDERATION_UID=' .env || printf 'FEDERATION_UID=%s\nFEDERATION_GID=%s\n' "$uid" "$gid" >>.env

# Docker would make an empty folder, owned by root, where one is missing.
for default in SITE_A_DATA=./data/sample/site-a SITE_B_DATA=./data/sample/site-b EVALUATION_DATA=./data/sample/holdout; do
	name=${default%%=*}
	folder=$(sed -n "s/^$name=//p" .env)
	folder=${!name:-${folder:-${default#*=}}}
	[[ -d $folder ]] || fail "$name: no folder $folder; set it in .env, or run make sample-data"
done
