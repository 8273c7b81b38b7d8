#!/bin/sh
# Steps of both images (Dockerfile, allinone.def); tests/containers/clean_tree.sh runs the same ones
# in a fresh Debian tree. As root, in this order:
#
#   install.sh system              packages of Ubuntu 24.04 or Debian 12
#   install.sh packages SOURCE     what uv.lock lists, into $VENV; needs SOURCE/{pyproject.toml,uv.lock}
#   install.sh project SOURCE      the project itself, from SOURCE
set -eu
VENV=${VENV:-/opt/venv}
UV_VERSION=0.13.9 # the version that wrote uv.lock
EXTRAS=${EXTRAS:-train dali prepare plots}

sync() { # SOURCE OPTIONS...
  source=$1
  shift
  for extra in $EXTRAS; do set -- "$@" --extra "$extra"; done
  UV_PROJECT_ENVIRONMENT=$VENV UV_PYTHON_DOWNLOADS=never UV_LINK_MODE=copy \
    "$VENV-uv/bin/uv" sync --project "$source" --python /usr/bin/python3 --frozen --no-cache "$@"
}

case ${1:-} in
  system)
    export DEBIAN_FRONTEND=noninteractive
    apt-get update
    # g++ and Python.h: torch.compile and DeepSpeed build small extensions when they are first used
    apt-get install -y --no-install-recommends ca-certificates g++ procps python3 python3-dev \
      python3-venv
    rm -rf /var/lib/apt/lists/*
    ;;
  packages)
    python3 -m venv "$VENV-uv" # uv apart: its `sync` removes what the lock does not list
    "$VENV-uv/bin/pip" install --no-cache-dir "uv==$UV_VERSION"
    sync "$2" --no-install-project
    ;;
  project)
    sync "$2"
    ;;
  *)
    echo "usage: install.sh system | packages SOURCE | project SOURCE" >&2
    exit 2
    ;;
esac
