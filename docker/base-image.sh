#!/usr/bin/env bash
# Make the base image of docker/Dockerfile from Debian packages, where no image registry can be reached.
#
#     docker/base-image.sh [IMAGE]        default: debian:trixie-slim
#
# Needs root and debootstrap. The mirror is the one this machine installs its own packages from. If pip is
# configured here with a CA bundle (a company's proxy), the image gets the bundle and the same setting, so
# that the Dockerfile builds unchanged.
set -euo pipefail
cd "$(dirname "$0")/.."

image=${1:-debian:trixie-slim}
suite=${image#*:}
suite=${suite%-slim}

fail() {
	echo "error: $*" >&2
	exit 2
}
((EUID == 0)) || fail "debootstrap needs root: run this as root, or pull $image from a registry"
command -v debootstrap >/dev/null || fail "debootstrap is not installed: apt-get install debootstrap"
docker info >/dev/null 2>&1 || fail "no Docker engine answers at ${DOCKER_HOST:-the default socket}"

# Compose reads it: from now on nothing is pulled.
[[ -f .env ]] || install -m 600 /dev/null .env  # it may hold tokens
# shellcheck source=docker/env.sh
. docker/env.sh
[[ -n $(value_in_file COMPOSE_FILE) ]] || append_to_file COMPOSE_FILE=docker-compose.yml:docker/compose.offline.yml
if docker image inspect "$image" >/dev/null 2>&1; then
	echo "$image exists"
	exit 0
fi

# One-line (deb http://... suite main) or deb822 (URIs: http://...) sources, whichever this machine has.
shopt -s nullglob
mirrors=$(awk '/^URIs:/ {print $2} /^deb / {for (i = 2; i <= NF; i++) if ($i ~ /:\/\//) print $i}' \
	/dev/null /etc/apt/sources.lis[t] /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources)
mirror=${mirrors%%$'\n'*}
[[ -n $mirror ]] || fail "no Debian mirror in /etc/apt"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
debootstrap --variant=minbase "$suite" "$work/root" "$mirror" >"$work/log" 2>&1 || {
	tail -5 "$work/log" >&2
	fail "debootstrap of $suite failed"
}
# As in the official image: what apt downloads and indexes does not stay in a layer.
cat >"$work/root/etc/apt/apt.conf.d/docker-clean" <<'CONF'
DPkg::Post-Invoke { "rm -f /var/cache/apt/archives/*.deb /var/cache/apt/*.bin || true"; };
Dir::Cache::pkgcache "";
Dir::Cache::srcpkgcache "";
CONF
ca_bundle=$(python3 -m pip config get global.cert 2>/dev/null || echo "${PIP_CERT:-}")
if [[ -n $ca_bundle ]]; then
	# Not at its usual place: installing ca-certificates would write over it.
	install -D -m 644 "$ca_bundle" "$work/root/etc/ssl/host-ca.crt"
	printf '[global]\ncert = /etc/ssl/host-ca.crt\n' >"$work/root/etc/pip.conf"
fi
tar -C "$work/root" --exclude='./var/cache/apt/*' --exclude='./var/lib/apt/lists/*' \
	--exclude='./usr/share/doc/*' --exclude='./usr/share/man/*' --exclude='./var/log/*' -c . |
	docker import -c 'CMD ["bash"]' - "$image" >/dev/null
echo "made $image"
