#!/usr/bin/env bash
# Prints the path of a helm of the version this repository is checked with; builds it with Go where it is not there yet.
# It is kept outside of the checkout, in WARREN_TOOLS (default ~/.cache/warren).
set -euo pipefail
version=v3.22.0
tools=${WARREN_TOOLS:-${XDG_CACHE_HOME:-$HOME/.cache}/warren}/helm-$version
if [ ! -x "$tools/helm" ]; then
  command -v go >/dev/null || { echo "helm.sh: Go is needed to build helm $version" >&2; exit 1; }
  mkdir -p "$tools"
  GOBIN=$tools GOFLAGS=-mod=mod go install "helm.sh/helm/v3/cmd/helm@$version" >&2
fi
echo "$tools/helm"
