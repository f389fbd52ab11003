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

# The first file or folder below $1 that a test of find's, given behind it, does not hold of.
first_without() {
	local folder=$1
	shift
	find -L "$folder" ! \( "$@" \) -print 2>/dev/null | sed -n 1p
}

readable=(-type d -perm -005 -o ! -type d -perm -004)  # by anybody
open_to_all() {
	[[ -z $(first_without "$1" "${readable[@]}") ]] || chmod -R a+rX "$1" 2>/dev/null || true
}

uid=$(id -u)
[[ ! -e .env || -O .env || $uid == 0 ]] || fail ".env belongs to user $(owners_of .env); run sudo chown $uid .env"
[[ -f $certs/superlink/server.key ]] || fail "$certs holds no certificates that user $uid can see; run make \
certs, or sudo make certs if they are root's"

# Secrets of docker-compose.yml, also where its sites are left out.
for site in site-a site-b; do
	[[ -f $certs/sites/$site/node.key.pub ]] || fail "$certs/sites/$site/node.key.pub is missing, and \
docker-compose.yml names it; put $site into sites in configs/certs.toml and run make certs again"
done

# It may hold tokens.
[[ -f .env ]] || install -m 600 /dev/null .env
((uid != 0)) || chown "$(owners_of .)" .env
chmod 600 .env

# shellcheck source=docker/env.sh
. docker/env.sh
configured=$(value_of FEDERATION_UID)
group=$(value_of FEDERATION_GID)
if ((uid == 0)); then
	owner=$(owners_of .)
	((owner != 0)) || owner=$CONTAINER_UID
	configured=${configured:-$owner}
	chown -R "$configured:${group:-$configured}" "$certs/superlink" "$certs/sites" "$certs/invited" "$certs/revoked"
fi
if [[ -z $configured ]] && docker info 2>/dev/null | grep -qE '^ *rootless(: true)?$'; then
	configured=0 group=${group:-0} # there the user who runs the engine, whose the keys are
fi
configured=${configured:-$uid}
[[ -n $(value_in_file FEDERATION_UID) ]] || append_to_file "FEDERATION_UID=$configured"
((uid != 0)) || group=${group:-$configured}
group=${group:-$(id -g)}
[[ -n $(value_in_file FEDERATION_GID) ]] || append_to_file "FEDERATION_GID=$group"
# 0 is what a rootless engine calls the user who runs it.
owners=$(owners_of "$certs"/superlink/* "$certs"/sites/*/*)
((configured == 0)) || [[ $owners == "$configured" ]] || fail "the containers run as user $configured \
(FEDERATION_UID in .env), and the keys in $certs belong to user $owners: they could not be read; run sudo make \
certs, or sudo chown -R $uid $certs and put FEDERATION_UID=$uid and FEDERATION_GID=$(id -g) into .env"

# Docker's own message, when a container asks for a device that it cannot give, names no fix.
if [[ -n ${GPU:-} || $(value_of COMPOSE_FILE) == *compose.gpu.yml* ]]; then
	command -v nvidia-ctk >/dev/null || docker info 2>/dev/null | grep -qi nvidia || fail "GPUs are asked for, and \
Docker has no NVIDIA runtime: install NVIDIA's container toolkit, run sudo nvidia-ctk runtime configure \
--runtime=docker and restart Docker, or leave out GPU=1 and docker/compose.gpu.yml"
fi

# What `make up` was asked for once is meant of every docker compose later: of a restart, of a site's doctor.
keep_setting() {
	[[ $(value_in_file "$1") == "$2" ]] || append_to_file "$1=$2"
}
if [[ -n ${GPU:-} && $(value_of COMPOSE_FILE) != *compose.gpu.yml* ]]; then
	files=$(value_of COMPOSE_FILE)
	keep_setting COMPOSE_FILE "${files:-docker-compose.yml}:docker/compose.gpu.yml"
fi
[[ -z ${CONFIG:-} ]] || keep_setting CONFIG "$CONFIG"

# Where all sites are elsewhere, this machine has the evaluation's data alone.
datasets=(SITE_A_DATA=./data/sample/site-a SITE_B_DATA=./data/sample/site-b EVALUATION_DATA=./data/sample/holdout)
mounts=("${datasets[@]}" SITE_A_RULES=./docker/no-rules.toml SITE_B_RULES=./docker/no-rules.toml)
if [[ $(value_of COMPOSE_FILE) == *compose.invited.yml* ]]; then
	datasets=("${datasets[2]}")
	mounts=("${datasets[@]}")
	[[ -n $(value_of CONFIG) ]] || fail "CONFIG is not set: name in .env the configuration that sites are invited \
to, such as CONFIG=configs/smolvla.toml; docker compose up begins its run"
fi

# The simulator's data is never mixed with a recording: all of them or none.
names=("${datasets[@]%%=*}")
set_ones=() missing=()
for name in "${names[@]}"; do
	if [[ -n $(value_of "$name") ]]; then set_ones+=("$name"); else missing+=("$name"); fi
done
((${#missing[@]} == 0 || ${#set_ones[@]} == 0)) || fail "${set_ones[*]} is set and ${missing[*]} is not, which \
would mix your data with the simulated sample data: set all of ${names[*]} in .env, or none"

# Prometheus and Grafana have ids of their own and read files of the project, which a clone under umask 077 hides.
for folder in docker/prometheus docker/grafana configs; do
	open_to_all "$folder"
	closed=$(first_without "$folder" "${readable[@]}")
	[[ -z $closed ]] || fail "$closed cannot be read by the containers; run sudo chmod -R a+rX $folder"
done

# SELinux lets containers read what bears its label for them; Docker gives none to what is mounted.
confined=false
if [[ $(getenforce 2>/dev/null) == Enforcing ]] && docker info 2>/dev/null | grep -qiE '^ *selinux$|selinuxEnabled: true'; then
	confined=true
fi
require_label() {
	$confined || return 0
	# shellcheck disable=SC2012
	ls -Zd "$1" | grep -q ':container_file_t:' || fail "SELinux keeps containers from $1; run sudo chcon -R -t \
container_file_t \"$1\""
}
for folder in "$certs/superlink" "$certs/sites" "$certs/invited" "$certs/revoked" configs docker/prometheus docker/grafana; do require_label "$folder"; done

# What a container mounts of NAME=DEFAULT, the first argument, must be there and readable.
check_mount() {
	local name=${1%%=*} path closed
	path=$(value_of "$name")
	path=${path:-${1#*=}}
	[[ $path != \~* ]] || path=$HOME/${path#\~}
	# One with a variable in it, where Compose could not be asked: it will put that in, and refuse what is missing.
	[[ -n $settings || $path != *\$* ]] || return 0
	if [[ $name == *_RULES ]]; then
		[[ -f $path ]] || fail "$name: no file $path; set it in .env"
	else
		# Docker would make an empty folder, owned by root.
		[[ -d $path ]] || fail "$name: no folder $path; set it in .env, or run make sample-data"
	fi
	require_label "$path"
	((configured != 0)) || return 0
	[[ -n $(value_of "$name") ]] || open_to_all "$path" # what the project brings is no secret
	closed=$(first_without "$path" "${readable[@]}" -o -user "$configured" -o -group "$group" -perm -040)
	[[ -z $closed ]] || fail "$name: $closed cannot be read by user $configured, whom the containers run as \
(FEDERATION_UID in .env); run chmod -R a+rX \"$path\""
}
for mount in "${mounts[@]}"; do check_mount "$mount"; done
