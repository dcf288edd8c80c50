#!/usr/bin/env bash
# Builds Warren's container image without a container engine.
#
#   deploy/image.sh [--tag NAME:TAG] [--out FILE.tar]     writes an archive that `docker load`, `podman load`,
#                                                         `ctr images import` and `minikube image load` take
#   deploy/image.sh --rootfs DIR                          writes only the files of the image (for deploy/Dockerfile)
#   --binary FILE                                         takes this static binary instead of building one
#
# The archive holds one image in both the OCI and the docker layout. The same binary and the same CA bundle give the same
# archive, byte for byte. Needs bash, GNU tar, gzip, sha256sum, and for the build Rust, a C compiler, strip (binutils) and
# libc's static library (Debian: libc6-dev).
# Settings: CARGO_TARGET_DIR (default target/image, apart from other builds), CA_BUNDLE (default the bundle of Debian's package
# ca-certificates on this machine), CARGO_FLAGS (more flags of `cargo build`, e.g. -j2).
set -euo pipefail
export LC_ALL=C
umask 022

here=$(cd "$(dirname "$0")/.." && pwd)
version=$(sed -n 's/^version = "\(.*\)"$/\1/p' "$here/Cargo.toml" | head -n 1)
tag=localhost/warren:$version
out= rootfs= binary=

usage() { sed -n '2,/^set/{s/^# \{0,1\}//p}' "$0"; }
fail() { echo "image.sh: $*" >&2; exit 1; }

while [ $# -gt 0 ]; do
  case $1 in
    --tag | --out | --rootfs | --binary)
      [ $# -ge 2 ] || fail "$1 needs a value"
      declare "${1#--}=$2"
      shift 2
      ;;
    -h | --help) usage; exit 0 ;;
    *) usage >&2; exit 2 ;;
  esac
done
[[ $tag == *?:?* ]] || fail "--tag is NAME:TAG"
# Container runtimes look images up by a full name; one without a registry is of this machine.
case ${tag%%/*} in
  "$tag") tag=localhost/$tag ;;
  *.* | *:* | localhost) ;;
  *) tag=localhost/$tag ;;
esac

case $(uname -m) in
  x86_64) arch=amd64 triple=x86_64-unknown-linux-gnu ;;
  aarch64) arch=arm64 triple=aarch64-unknown-linux-gnu ;;
  *) fail "no image for $(uname -m)" ;;
esac

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

build() {
  local target=${CARGO_TARGET_DIR:-$here/target/image}
  # A target named explicitly keeps build scripts and macros, which cannot be static, out of the flag's reach.
  # shellcheck disable=SC2086
  (cd "$here" && RUSTFLAGS="-C target-feature=+crt-static" CARGO_TARGET_DIR=$target \
    cargo build --release --locked --target "$triple" --bin warren ${CARGO_FLAGS:-}) >&2
  binary=$target/$triple/release/warren
}

# The files of the image, in $1/base and $1/warren: what changes rarely, and the program.
populate() {
  local base=$1/base program=$1/warren bundle=${CA_BUNDLE:-/etc/ssl/certs/ca-certificates.crt}
  [ -s "$bundle" ] || fail "$bundle is missing: install ca-certificates or name another with CA_BUNDLE"
  install -d -m 0755 "$base/etc/ssl/certs" "$program"
  install -m 0644 "$bundle" "$base/etc/ssl/certs/ca-certificates.crt"
  # Names of users, for `kubectl debug` and `ps`; and how names are resolved: libc is static, so only what is built into it.
  printf 'root:x:0:0:root:/:/warren\nwarren:x:65532:65532:warren:/:/warren\n' >"$base/etc/passwd"
  printf 'root:x:0:\nwarren:x:65532:\n' >"$base/etc/group"
  printf 'hosts: files dns\n' >"$base/etc/nsswitch.conf"
  chmod 0644 "$base/etc/passwd" "$base/etc/group" "$base/etc/nsswitch.conf"
  install -m 0755 "$binary" "$program/warren"
  strip --strip-all "$program/warren" # leaves the build id, by which the unstripped one is found
}

# A reproducible tar of directory $1.
pack() { (cd "$1" && tar --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner --format=gnu -cf - -- *); }

# Moves file $1 among the archive's blobs; prints its digest.
blob() {
  local digest
  digest=$(sha256sum "$1" | cut -d' ' -f1)
  mv "$1" "$work/archive/blobs/sha256/$digest"
  echo "$digest"
}

size() { stat -c %s "$work/archive/blobs/sha256/$1"; }

[ -n "$binary" ] || build
if ldd "$binary" >/dev/null 2>&1 && ! ldd "$binary" 2>&1 | grep -q 'statically linked'; then
  fail "$binary is not static"
fi
populate "$work/root"

if [ -n "$rootfs" ]; then
  mkdir -p "$rootfs"
  cp -a "$work/root/base/." "$work/root/warren/." "$rootfs/"
  exit 0
fi

out=${out:-$here/target/warren-$version-$arch.tar}
mkdir -p "$work/archive/blobs/sha256" "$(dirname "$out")"
layers= diff_ids= paths=
for layer in base warren; do
  pack "$work/root/$layer" >"$work/layer"
  diff_ids+=",\"sha256:$(sha256sum "$work/layer" | cut -d' ' -f1)\""
  gzip -n -9 -c "$work/layer" >"$work/layer.gz"
  digest=$(blob "$work/layer.gz")
  layers+=",{\"mediaType\":\"application/vnd.oci.image.layer.v1.tar+gzip\",\"digest\":\"sha256:$digest\",\"size\":$(size "$digest")}"
  paths+=",\"blobs/sha256/$digest\""
done

cat >"$work/config" <<JSON
{"architecture":"$arch","os":"linux","created":"1970-01-01T00:00:00Z","config":{"User":"0","Entrypoint":["/warren"],"WorkingDir":"/","Labels":{"org.opencontainers.image.title":"warren","org.opencontainers.image.version":"$version","org.opencontainers.image.licenses":"Apache-2.0"}},"rootfs":{"type":"layers","diff_ids":[${diff_ids#,}]},"history":[{"created":"1970-01-01T00:00:00Z","created_by":"CA certificates, users"},{"created":"1970-01-01T00:00:00Z","created_by":"warren"}]}
JSON
config=$(blob "$work/config")

cat >"$work/manifest" <<JSON
{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:$config","size":$(size "$config")},"layers":[${layers#,}]}
JSON
manifest=$(blob "$work/manifest")

cat >"$work/archive/index.json" <<JSON
{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:$manifest","size":$(size "$manifest"),"platform":{"architecture":"$arch","os":"linux"},"annotations":{"io.containerd.image.name":"$tag","org.opencontainers.image.ref.name":"${tag##*:}"}}]}
JSON
printf '{"imageLayoutVersion":"1.0.0"}\n' >"$work/archive/oci-layout"
printf '[{"Config":"blobs/sha256/%s","RepoTags":["%s"],"Layers":[%s]}]\n' "$config" "$tag" "${paths#,}" >"$work/archive/manifest.json"

pack "$work/archive" >"$work/image.tar"
mv "$work/image.tar" "$out"
echo "$out: $tag, $(stat -c %s "$work/root/warren/warren" | numfmt --to=si)B program, $(stat -c %s "$out" | numfmt --to=si)B archive" >&2
echo "$out"
