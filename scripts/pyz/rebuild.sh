#!/bin/bash
# usage: bash rebuild.sh [SERVICE ...]    rebuild what changed in the project of this folder, with no network
# 用法：bash rebuild.sh [服务 ...]         重建本目录项目中有变化的部分，不需要网络
#
# offline-rebuild.pyz lies beside this file. Options that are always wanted (-f FILE, --health-check URL, ...) go into
# rebuild.options beside it. 选项可写在同目录的 rebuild.options 文件里。
set -euo pipefail
here=$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")
options=()
if [ -f "$here/rebuild.options" ]; then
    options=(--options "$here/rebuild.options")
fi
exec python3 "$here/offline-rebuild.pyz" rebuild --project-src "$PWD" ${options[@]+"${options[@]}"} "$@"
