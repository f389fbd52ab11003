#!/usr/bin/env bash
# Compares the dashboards with Grafana's own types, of the version in docker-compose.yml: wrong types and unknown
# keys are errors. Needs npm.
set -euo pipefail
cd "$(dirname "$0")/dashboards"

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
npm install --silent --no-audit --no-fund --prefix "$folder" @grafana/schema@12.2.0 typescript@5.9
{
	echo "import type { Dashboard } from '@grafana/schema';"
	# The schema's enums are strings in a file.
	# shellcheck disable=SC2016
	echo 'type Plain<T> = T extends string ? `${T}` : T extends (infer U)[] ? Plain<U>[]'
	echo '  : T extends object ? { [K in keyof T]: Plain<T[K]> } : T;'
	for file in *.json; do
		echo "export const ${file%.json}: Plain<Dashboard> = $(cat "$file");"
	done
} >"$folder/check.ts"
cd "$folder"
node_modules/.bin/tsc --noEmit --strict --skipLibCheck --moduleResolution node --target es2022 --module esnext check.ts
echo "the dashboards fit @grafana/schema"
