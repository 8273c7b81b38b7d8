#!/bin/bash
# Run the steps of containers/install.sh in a fresh Debian 12 tree, as root, by hand: images cannot be
# built without a container engine. Then train two steps there as a user without privileges. Needs
# mmdebstrap and some 15 GB below TREE; prints what it took.
#
#   tests/containers/clean_tree.sh [TREE]
set -euo pipefail
tree=${1:-/tmp/allinone-tree}
cd "$(dirname "$0")/../.."
[[ ! -e $tree ]] || { echo "error: $tree exists; remove it or name another folder" >&2; exit 2; }

mmdebstrap --variant=minbase bookworm "$tree" >"$tree.log" 2>&1
cleanup() { umount "$tree/proc" "$tree/dev/shm" 2>/dev/null || true; }
trap cleanup EXIT
mount -t proc proc "$tree/proc"
mkdir -p "$tree/dev/shm" && mount -t tmpfs tmpfs "$tree/dev/shm"
cp /etc/resolv.conf "$tree/etc/resolv.conf"
inside() { chroot "$tree" "$@"; }

mkdir -p "$tree/opt/allinone"
git archive HEAD | tar -x -C "$tree/opt/allinone"
for step in system "packages /opt/allinone" "project /opt/allinone"; do
  SECONDS=0
  # shellcheck disable=SC2086
  inside /opt/allinone/containers/install.sh $step >>"$tree.log" 2>&1 ||
    { tail -n 20 "$tree.log"; exit 1; }
  echo "install.sh $step: $SECONDS s"
  # a proxy's certificate, where the site has one; the variables that name it are passed on
  if [[ -n ${SSL_CERT_FILE:-} ]]; then install -D "$SSL_CERT_FILE" "$tree$SSL_CERT_FILE"; fi
done
du -sh "$tree/opt/venv" | cut -f1

inside useradd --create-home allinone
inside mkdir -p /opt/allinone/runs
inside chown allinone: /opt/allinone/runs
as_user="export PATH=/opt/venv/bin:\$PATH; cd /opt/allinone &&"
inside su allinone -c "$as_user allinone env"
inside su allinone -c "$as_user allinone prepare data/demo --out runs/demo-data"
inside su allinone -c "$as_user DS_ACCELERATOR=cpu allinone train demo --data runs/demo-data:train --val \
  --steps 2 --out runs/two-steps"
echo "done; $tree can be removed"
