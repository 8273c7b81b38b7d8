#!/bin/sh
# Names the missing Debian packages, and the command that installs them, before anything is built.
# Usage: check_system.sh PYTHON
set -u
python=${1:-python3}
missing=""
need() { missing="$missing $1"; }

command -v "$python" >/dev/null 2>&1 || need python3
if command -v "$python" >/dev/null 2>&1; then
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "error: $python is $("$python" --version 2>&1); Python 3.11 or newer is needed." \
      "Choose one with: make PYTHON=/path/to/python3.11 ..." >&2
    exit 1
  }
  "$python" -c 'import venv, ensurepip' 2>/dev/null || need python3-venv
  # torch.compile and DeepSpeed's JIT-built ops include Python.h
  "$python" -c '
import os, sys, sysconfig
sys.exit(not os.path.exists(os.path.join(sysconfig.get_paths()["include"], "Python.h")))
' 2>/dev/null || need python3-dev
fi
command -v g++ >/dev/null 2>&1 || need g++

if [ -n "$missing" ]; then
  echo "error: missing Debian packages:$missing" >&2
  echo "install them with:  sudo apt-get update && sudo apt-get install -y$missing" >&2
  exit 1
fi
