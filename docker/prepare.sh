#!/usr/bin/env bash
# What Compose cannot check or do by itself, between `make certs` and `docker compose up`.
#
# The containers never run as root, and private keys stay 0600. A user's containers run under the user's own
# id, also if root calls this in the user's checkout. Root's own run under another id, which is given the files
# of SuperLink and of the sites; ca.key stays root's. Keys that the containers could not read are refused here.
set -euo pipefail
cd "$(dirname "$0")/.."

CONTAINER_UID=10001
certs=certs/generated

fail() {
	echo "error: $*" >&2
	exit 2
}

# Numbers of the owners of what is named; stat differs between systems.
owners_of() {
	ls -ldn "$@" | awk '{print $3}' | sort -u | paste -sd ' ' -
}

# The value of a name as Compose takes it: the environment's, else that of the last line in .env.
value_of() {
	local value=${!1:-}
	[[ -n $value ]] || value=$(sed -nE "s/^[[:space:]]*$1=[[:space:]]*//p" .env | tail -n 1 | tr -d '\r' |
		sed -E -e "s/^'([^']*)'.*/\1/" -e t -e 's/^"([^"]*)".*/\1/' -e t -e 's/[[:space:]]+(#.*)?$//')
	echo "$value"
}

uid=$(id -u)
[[ ! -e .env || -O .env || $uid == 0 ]] || fail ".env belongs to user $(owners_of .env); run sudo chown $uid .env"
[[ -f $certs/superlink/server.key ]] || fail "$certs holds no certificates that user $uid can see; run make \
certs, or sudo make certs if they are root's"

# It may hold tokens.
[[ -f .env ]] || install -m 600 /dev/null .env
[[ -z $(tail -c 1 .env) ]] || echo >>.env
((uid != 0)) || chown "$(owners_of .)" .env
chmod 600 .env

configured=$(value_of FEDERATION_UID)
group=$(value_of FEDERATION_GID)
if ((uid == 0)); then
	owner=$(owners_of .)
	((owner != 0)) || owner=$CONTAINER_UID
	configured=${configured:-$owner}
	chown -R "$configured:${group:-$configured}" "$certs/superlink" "$certs/sites"
fi
configured=${configured:-$uid}
grep -q '^FEDERATION_UID=' .env || printf 'FEDERATION_UID=%s\n' "$configured" >>.env
((uid != 0)) || group=${group:-$configured}
grep -q '^FEDERATION_GID=' .env || printf 'FEDERATION_GID=%s\n' "${group:-$(id -g)}" >>.env
# 0 is what a rootless engine calls the user who runs it.
owners=$(owners_of "$certs"/superlink/* "$certs"/sites/*/*)
((configured == 0)) || [[ $owners == "$configured" ]] || fail "the containers run as user $configured \
(FEDERATION_UID in .env), and the keys in $certs belong to user $owners: they could not be read; run sudo make \
certs, or sudo chown -R $uid $certs and put FEDERATION_UID=$uid and FEDERATION_GID=$(id -g) into .env"

# The simulator's data is never mixed with a recording: all three or none.
names=(SITE_A_DATA SITE_B_DATA EVALUATION_DATA)
set_ones=() missing=()
for name in "${names[@]}"; do
	if [[ -n $(value_of "$name") ]]; then set_ones+=("$name"); else missing+=("$name"); fi
done
((${#missing[@]} == 0 || ${#set_ones[@]} == 0)) || fail "${set_ones[*]} is set and ${missing[*]} is not, which \
would mix your data with the simulated sample data: set all of ${names[*]} in .env, or none"

# Docker would make an empty folder, owned by root, where one is missing.
for default in SITE_A_DATA=./data/sample/site-a SITE_B_DATA=./data/sample/site-b EVALUATION_DATA=./data/sample/holdout; do
	name=${default%%=*}
	folder=$(value_of "$name")
	folder=${folder:-${default#*=}}
	folder=${folder/#\~\//$HOME/}
	# One with a variable in it: Compose puts that in, and refuses a folder that is missing.
	[[ $folder == *\$* || -d $folder ]] || fail "$name: no folder $folder; set it in .env, or run make sample-data"
done
