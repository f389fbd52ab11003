#!/usr/bin/env bash
# Print what Compose takes for a setting from .env and the environment; an empty line if it is set nowhere.
#
#     docker/env.sh NAME ...
#
# prepare.sh and base-image.sh source it, from the repository's root, for its functions. Compose itself is asked
# where it is installed. Elsewhere .env is read here by the same rules, but for values of several lines, several
# values in a line, and variables and backslashes in a value, which stay as they are written.

# The value that .env alone gives to a name: that of the last line with it.
value_in_file() {
	[[ -f .env ]] || return 0
	local end=$'\r' mark=$'\xef\xbb\xbf'
	# With a newline behind an empty value that ends the file: tail would not see its line.
	{ cat .env && echo; } | LC_ALL=C sed -nE -e "1s/^$mark//" -e "s/$end\$//" \
		-e "s/^[[:space:]]*(export[[:space:]]+)?$1[[:space:]]*[=:][[:space:]]*//p" | tail -n 1 |
		sed -E -e "s/^'([^']*)'.*/\1/" -e t -e 's/^"([^"]*)".*/\1/' -e t -e 's/ #.*$//' -e 's/[[:space:]]+$//'
}

# What Compose takes for a name.
value_of() {
	if [[ -n $settings ]]; then
		sed -n "s/^$1=//p" <<<"$settings" | sed -n 1p
	elif [[ -n ${!1+set} ]]; then
		echo "${!1}"
	else
		value_in_file "$1"
	fi
}

# Append a line to .env, which need not end with a newline.
append_to_file() {
	[[ -z $(tail -c 1 .env) ]] || echo >>.env
	echo "$1" >>.env
}

[[ ${BASH_SOURCE[0]} != "$0" ]] || cd "$(dirname "$0")/.." || exit 2
settings=
if docker compose version >/dev/null 2>&1; then
	# Not the project's own files: those that COMPOSE_FILE names need not be there yet.
	settings=$(echo 'services: {none: {image: none}}' | docker compose --file - config --environment 2>&1) || {
		echo "error: ${settings##*$'\n'}" >&2
		exit 2
	}
fi

if [[ ${BASH_SOURCE[0]} == "$0" ]]; then
	for name; do printf '%s\n' "$(value_of "$name")"; done
fi
